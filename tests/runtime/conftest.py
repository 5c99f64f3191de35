from collections.abc import Iterator
from pathlib import Path

import pytest

import fake_gpu
import fake_tensorrt
import fakes
from mscope.runtime import Scope


@pytest.fixture(scope="session")
def network() -> fakes.FakeNetwork:
    return fakes.FakeNetwork(fakes.fake_config())


@pytest.fixture(scope="session")
def bundle(tmp_path_factory: pytest.TempPathFactory, network: fakes.FakeNetwork) -> Path:
    folder = tmp_path_factory.mktemp("bundles") / "fake"
    fakes.write_fake_bundle(folder, network)
    return folder


@pytest.fixture(scope="session")
def scope(bundle: Path) -> Iterator[Scope]:
    with Scope.load(bundle, threads=1, kernel="function") as loaded:
        yield loaded


@pytest.fixture(scope="session")
def vim_network() -> fakes.FakeNetwork:
    return fakes.FakeNetwork(fakes.fake_config(arch="vim"))


@pytest.fixture(scope="session")
def vim_bundle(tmp_path_factory: pytest.TempPathFactory, vim_network: fakes.FakeNetwork) -> Path:
    folder = tmp_path_factory.mktemp("bundles") / "vim"
    fakes.write_fake_bundle(folder, vim_network)
    return folder


@pytest.fixture(scope="module")
def engines(tmp_path_factory: pytest.TempPathFactory, network: fakes.FakeNetwork) -> Path:
    """The fake bundle with engines beside its graphs."""
    folder = tmp_path_factory.mktemp("engines") / "b"
    fakes.write_fake_bundle(folder, network)
    fake_tensorrt.add_engines(folder)
    return folder


@pytest.fixture(params=["stand-in", "cuda-python"])
def layer(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Where tests/fake_cuda.py stands in for CUDA: at cuda-python's place, and below the real cuda-python."""
    if request.param == "cuda-python":
        fake_gpu.through_cuda_python(monkeypatch)
    return str(request.param)
