"""benchmarks/scan_gpu.py and latency_gpu.py from the command to the result, over a stand-in for torch.cuda."""

from __future__ import annotations

import importlib
import json
from collections.abc import Iterator
from datetime import date
from pathlib import Path
from typing import Any

import pytest
import torch

import fake_torch_cuda
from fake_torch_cuda import FakeTorchCuda, Misuse
from mscope.core.config import make_config


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeTorchCuda]:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "benchmarks"))
    monkeypatch.setattr(importlib.import_module("gpu_timing"), "WARM_UP_S", 0.0)
    with fake_torch_cuda.installed(monkeypatch) as fake:
        yield fake


def tiny(size: str, arch: str) -> Any:
    fields: dict[str, Any] = {"size": size, "arch": arch, "d_model": 8, "depth": 2, "patch": 8, "classes": 5}
    return make_config(fields | {"height": 32, "width": 32})


def check_heading(report: dict[str, Any]) -> None:
    assert report["date"] == date.today().isoformat()
    assert (report["gpu"], report["compute_capability"], report["kernels"]) == ("NVIDIA Fake", [9, 0], "host")
    assert {"cuda", "driver"} <= set(report)
    assert {"python", "torch", "numpy"} <= set(report["versions"])


def test_the_kernels_are_timed_and_every_line_is_kept(
    fake: FakeTorchCuda, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    program = importlib.import_module("scan_gpu")
    monkeypatch.setattr(program, "copy_rate", lambda: 3e12)
    monkeypatch.setattr(program, "exponential_rate", lambda: 4e12)
    monkeypatch.setattr(program, "CALLS", 3)
    monkeypatch.setattr(program, "MOST_SETS", 2)
    measure, out = program.measure, tmp_path / "scan.json"
    common = ["--batches", "1", "--channels", "8", "--rounds", "2", "--out", str(out)]
    assert program.main([*common, "--lengths", "5", "20"]) == 0
    report = json.loads(out.read_text())
    check_heading(report)
    assert [line["length"] for line in report["sizes"]] == [5, 20]
    for line in report["sizes"]:
        for name in ("block", "conv", "scan"):
            assert line[f"{name}_us"] == pytest.approx(fake_torch_cuda.REPLAY_MS * 1e3 / 3)
        assert line["floor_us"] > 0
        assert "rival_us" not in line
    assert len(report["notes"]) == 2, "neither rival is installed here, and both say so"
    assert len(report["goals"]) == 3
    assert str(out) in capsys.readouterr().out
    assert fake.replays == 2 * 3 * (1 + 2), "one round warms up"

    def cut_short(size: Any, *others: Any) -> Any:
        if size.length == 20:
            raise KeyboardInterrupt
        return measure(size, *others)

    monkeypatch.setattr(program, "measure", cut_short)
    out.unlink()
    with pytest.raises(KeyboardInterrupt):
        program.main([*common, "--lengths", "5", "20"])
    assert [line["length"] for line in json.loads(out.read_text())["sizes"]] == [5]
    assert [path.name for path in tmp_path.iterdir()] == [out.name]


def test_the_networks_are_timed_as_graphs(
    fake: FakeTorchCuda, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """In float16 on the project's kernels; a rival that fails without a word is a note."""
    program = importlib.import_module("latency_gpu")
    monkeypatch.setattr("mscope.core.config.config_for", tiny)

    def failing(*_: Any, **__: Any) -> Any:
        raise AssertionError

    monkeypatch.setattr(program, "deit", failing)
    out = tmp_path / "latency.json"
    assert program.main(["--sizes", "ti", "--batches", "1", "2", "--rounds", "3", "--out", str(out)]) == 0
    report = json.loads(out.read_text())
    check_heading(report)
    assert [(line["size"], line["batch"]) for line in report["lines"]] == [("ti", 1), ("ti", 2)]
    for line in report["lines"]:
        for stage in ("coarse", "fine", "full"):
            assert line[stage]["p50_ms"] == pytest.approx(fake_torch_cuda.REPLAY_MS)
        assert "break_even_exit_rate" in line
    assert "DeiT-ti at batch 1: AssertionError: " in report["notes"]
    assert "ti B   1" in capsys.readouterr().out


def test_the_floor_and_the_rival_are_timed_alike(fake: FakeTorchCuda) -> None:
    """From graphs whose inputs nobody else holds: what the rival had prepared, for one."""
    program = importlib.import_module("scan_gpu")
    prepared = [torch.ones(4), torch.ones(4)]
    graph = program.graph_of([lambda given=given: given + 1 for given in prepared])
    prepared.clear()
    assert program.median_us(graph) == pytest.approx(fake_torch_cuda.REPLAY_MS * 1e3 / program.CALLS)


def test_the_clocks_are_up_before_anything_counts(fake: FakeTorchCuda, monkeypatch: pytest.MonkeyPatch) -> None:
    program, called, now = importlib.import_module("gpu_timing"), [], [0.0]

    def timer() -> None:
        called.append(1)
        now[0] += 0.125

    monkeypatch.setattr(program, "WARM_UP_S", 0.5)
    monkeypatch.setattr(program.time, "perf_counter", lambda: now[0])
    program.warm_up([timer, timer])
    assert len(called) == 4
    program.warm_up([timer], rounds=10)
    assert len(called) == 14


SMI = """#!/bin/sh
case "$*" in
    --id=GPU-{uuid}*) echo 580.95, 1980 MHz, 3201 MHz, 700.00 W ;;
    --id=*) echo No devices were found; exit 6 ;;
    *) echo 580.95; echo 580.95 ;;
esac
"""


@pytest.mark.parametrize(("uuid", "said"), [("5e1f", "580.95, 1980 MHz, 3201 MHz, 700.00 W"), ("other", "580.95")])
def test_the_report_is_of_the_gpu_that_was_measured(
    uuid: str, said: str, fake: FakeTorchCuda, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "nvidia-smi").write_text(SMI.format(uuid=uuid))
    (tmp_path / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    assert importlib.import_module("gpu_report").driver() == said


def test_the_stand_in_refuses_a_graph_without_its_inputs(fake: FakeTorchCuda) -> None:
    graph, given = fake.CUDAGraph(), torch.ones(3)
    with fake.graph(graph):
        (given + 1).sum()
    graph.replay()
    del given
    with pytest.raises(Misuse, match="memory that it reads was freed"):
        graph.replay()


@pytest.mark.parametrize(
    ("call", "rule"),
    [
        (lambda: torch.ones(2).sum().item(), "the host waits for the device"),
        (lambda: torch.tensor([1, 2], device="cuda"), "sends memory that is not page-locked"),
        (lambda: torch.cuda.synchronize(), "waits for the device in a capture"),
    ],
)
def test_the_stand_in_refuses_what_a_capture_does(fake: FakeTorchCuda, call: Any, rule: str) -> None:
    with pytest.raises(Misuse, match=rule), fake.graph(fake.CUDAGraph()):
        call()


def test_the_stand_in_refuses_a_stream_that_waits_for_nobody(fake: FakeTorchCuda) -> None:
    with pytest.raises(Misuse, match="did not wait"), fake.stream(fake.Stream()):
        pass
