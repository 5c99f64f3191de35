"""One pass over the pictures: right rows, any batch, continued after a kill, refused when something changed."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import PIL
import pytest

import fakes
from labelled import write_class_folders
from mscope.calib import outputs as module
from mscope.calib.dataset import Dataset, open_dataset
from mscope.calib.outputs import Outputs, collect_outputs
from mscope.core.cascade import select_regions
from mscope.core.errors import InputError
from mscope.runtime import Scope

IMAGES = 23


def stored_chunks(folder: Path) -> int:
    return len(list(folder.glob("[0-9]*.npz")))


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CHUNK", 5)


@pytest.fixture(scope="module")
def network() -> fakes.FakeNetwork:
    return fakes.FakeNetwork(fakes.fake_config())


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory, network: fakes.FakeNetwork) -> Path:
    folder = tmp_path_factory.mktemp("bundles") / "fake"
    fakes.write_fake_bundle(folder, network)
    return folder


@pytest.fixture
def pictures(tmp_path: Path, network: fakes.FakeNetwork) -> Path:
    return write_class_folders(tmp_path / "pictures", network.config, IMAGES)


@pytest.fixture
def run(bundle: Path, tmp_path: Path) -> Callable[..., Outputs]:
    def collect(pictures: Path, folder: str = "store", batch: int = 4, **hooks: object) -> Outputs:
        with Scope.load(bundle, threads=1, kernel="function") as scope:
            data = open_dataset(str(pictures), scope.manifest)
            hooks.setdefault("on_problem", lambda problem: None)
            return collect_outputs(scope, data, tmp_path / folder, batch=batch, **hooks)  # type: ignore[arg-type]

    return collect


def test_every_row_is_that_picture_through_both_stages(
    run: Callable[..., Outputs], pictures: Path, bundle: Path, network: fakes.FakeNetwork
) -> None:
    counted: list[int] = []
    found = run(pictures, on_done=counted.append)
    assert sum(counted) == IMAGES
    with Scope.load(bundle, threads=1, kernel="function") as scope:
        data: Dataset = open_dataset(str(pictures), scope.manifest)
        for row in range(IMAGES):
            example = data.example(row)
            image = scope.preprocess(example.image).tensor[None]
            coarse = network.coarse(image)
            selected, remaining = select_regions(coarse["importance"], found.selected.shape[1])  # type: ignore[union-attr]
            assert found.labels[row] == example.label
            np.testing.assert_allclose(found.coarse_logits[row], coarse["logits"][0], atol=1e-5)  # type: ignore[index]
            np.testing.assert_array_equal(found.selected[row], selected[0])  # type: ignore[index]
            fine = network.fine(image, selected, remaining)
            np.testing.assert_allclose(found.fine_logits[row], fine[0], atol=1e-4)  # type: ignore[index]
    some = found.rows(np.array([3, 20]))
    np.testing.assert_array_equal(some.importance, found.importance[[3, 20]])  # type: ignore[index]


def test_the_batch_changes_no_number(run: Callable[..., Outputs], pictures: Path) -> None:
    first = run(pictures, "store-1", batch=1)
    for batch in (3, 5, 64):
        other = run(pictures, f"store-{batch}", batch=batch)
        np.testing.assert_array_equal(first.labels, other.labels)
        np.testing.assert_array_equal(first.selected, other.selected)
        for name in ("coarse_logits", "fine_logits", "importance"):
            # The same sums in another order at worst: a few roundings of values near 1.
            np.testing.assert_allclose(getattr(first, name), getattr(other, name), rtol=0, atol=2e-6)


def test_a_stopped_run_goes_on_where_it_was(run: Callable[..., Outputs], pictures: Path, tmp_path: Path) -> None:
    whole = run(pictures, "whole")

    def stop_after_12(count: int, done: list[int] = []) -> None:  # noqa: B006
        done.append(count)
        if sum(done) >= 12:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(pictures, on_done=stop_after_12)
    store = tmp_path / "store"
    assert stored_chunks(store) == 2
    assert not list(store.glob(".*"))
    before = {path: path.stat().st_mtime_ns for path in store.glob("0*.npz")}
    again = run(pictures, batch=2)
    assert {path: path.stat().st_mtime_ns for path in before} == before
    np.testing.assert_allclose(again.fine_logits, whole.fine_logits, atol=2e-6)  # type: ignore[arg-type]
    np.testing.assert_array_equal(again.indices, whole.indices)


def test_a_killed_process_leaves_whole_chunks(bundle: Path, pictures: Path, tmp_path: Path) -> None:
    store = tmp_path / "store"
    # The child sleeps a little after each picture, so that it is killed in the middle.
    code = (
        "import sys, time; from pathlib import Path; from mscope.calib import outputs; outputs.CHUNK = 5\n"
        "from mscope.calib.dataset import open_dataset; from mscope.runtime import Scope\n"
        "scope = Scope.load(sys.argv[1], threads=1, kernel='function')\n"
        "outputs.collect_outputs(scope, open_dataset(sys.argv[2], scope.manifest), Path(sys.argv[3]), batch=1,\n"
        "    on_problem=print, on_done=lambda count: time.sleep(0.05))"
    )
    child = subprocess.Popen([sys.executable, "-c", code, str(bundle), str(pictures), str(store)])
    deadline = time.monotonic() + 30
    while stored_chunks(store) < 2 and child.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    os.kill(child.pid, signal.SIGKILL)
    child.wait()
    assert 2 <= stored_chunks(store) < 5
    with Scope.load(bundle, threads=1, kernel="function") as scope:
        data = open_dataset(str(pictures), scope.manifest)
        found = collect_outputs(scope, data, store, on_problem=lambda problem: None)
    assert found.indices.tolist() == list(range(IMAGES))


def test_broken_pictures_are_counted_once_and_again_from_the_store(run: Callable[..., Outputs], pictures: Path) -> None:
    broken = sorted(pictures.rglob("*.png"))[7]
    broken.write_bytes(b"not a picture")
    told: list[str] = []
    for _ in range(2):
        told.clear()
        found = run(pictures, on_problem=lambda problem: told.append(str(problem)))
        assert len(found) == IMAGES - 1
        assert [one.index for one in found.skipped] == [7]
        assert len(told) == 1
        assert str(broken) in told[0]
        assert 7 not in found.indices


def test_nothing_readable_is_an_error(run: Callable[..., Outputs], pictures: Path) -> None:
    for path in pictures.rglob("*.png"):
        path.write_bytes(b"x")
    with pytest.raises(InputError, match=f"none of the {IMAGES} pictures can be read"):
        run(pictures)


def test_outputs_of_another_pillow_are_refused(
    run: Callable[..., Outputs], pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(pictures)
    key = tmp_path / "store" / "key.json"
    assert json.loads(key.read_text())["pillow"] == PIL.__version__
    monkeypatch.setattr("mscope.calib.outputs.pillow_version", lambda: "1.1.7")
    with pytest.raises(InputError, match=f"another Pillow \\({PIL.__version__}, here 1.1.7\\): choose another --out"):
        run(pictures)


def test_outputs_of_something_else_are_refused(
    run: Callable[..., Outputs], pictures: Path, tmp_path: Path, network: fakes.FakeNetwork
) -> None:
    run(pictures)
    other = tmp_path / "other"
    fakes.write_fake_bundle(other, fakes.FakeNetwork(network.config, seed=5))
    with Scope.load(other, threads=1, kernel="function") as scope:
        data = open_dataset(str(pictures), scope.manifest)
        with pytest.raises(InputError, match="outputs of another bundle"):
            collect_outputs(scope, data, tmp_path / "store", on_problem=print)
    first, second = sorted(pictures.rglob("*.png"))[:2]
    kept = first.read_bytes()
    first.write_bytes(second.read_bytes())
    with pytest.raises(InputError, match="another set of pictures: choose another --out"):
        run(pictures)
    first.write_bytes(kept)
    run(pictures)
    first.unlink()
    with pytest.raises(InputError, match="another set of pictures"):
        run(pictures)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("precious")
    with pytest.raises(InputError, match="not empty, and no outputs"):
        run(pictures, "mine")


def test_eta_and_labels_do_not_make_outputs_another_bundles(
    run: Callable[..., Outputs], pictures: Path, tmp_path: Path, network: fakes.FakeNetwork
) -> None:
    run(pictures)
    same = tmp_path / "same"
    fakes.write_fake_bundle(same, network, default_eta=0.123)
    with Scope.load(same, threads=1, kernel="function") as scope:
        data = open_dataset(str(pictures), scope.manifest)
        assert len(collect_outputs(scope, data, tmp_path / "store", on_problem=print)) == IMAGES


@pytest.mark.parametrize("damage", ["garbage", "cut", "other rows", "bad key"])
def test_a_damaged_store_is_named(run: Callable[..., Outputs], pictures: Path, tmp_path: Path, damage: str) -> None:
    run(pictures)
    chunk = tmp_path / "store" / "000001.npz"
    if damage == "garbage":
        chunk.write_bytes(b"PK nothing")
    elif damage == "cut":
        chunk.write_bytes(chunk.read_bytes()[:300])
    elif damage == "other rows":
        chunk.write_bytes((tmp_path / "store" / "000002.npz").read_bytes())
    else:
        (tmp_path / "store" / "key.json").write_text("[" * 100)
    with pytest.raises(InputError, match=r"(000001\.npz|key\.json): damaged"):
        run(pictures)
