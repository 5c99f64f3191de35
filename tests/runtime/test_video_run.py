"""`mscope-run` over videos: answers, outputs, overlays, what goes wrong on the way."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import clips
import fakes
from mscope.core.console import run_app
from mscope.runtime import Scope
from mscope.runtime.cli import app

av = clips.av


def run(capfd: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    status = run_app(app, [str(argument) for argument in arguments])
    return status, *capfd.readouterr()


@pytest.fixture
def clip(tmp_path: Path, network: fakes.FakeNetwork) -> Path:
    """Twelve frames, lossless, some of which exit at eta 0.6 and some do not."""
    images = fakes.random_images(network.config, 12).transpose(0, 2, 3, 1)
    clips.write_clip(tmp_path / "clip.mkv", list(np.clip(images * 127 + 128, 0, 255).astype(np.uint8)), codec="ffv1")
    return tmp_path / "clip.mkv"


def test_a_video_of_one_frame_has_frame_numbers_too(
    capfd: pytest.CaptureFixture[str], bundle: Path, tmp_path: Path
) -> None:
    clips.write_clip(tmp_path / "one.mkv", [np.zeros((64, 48, 3), np.uint8)], codec="ffv1")
    assert (
        run(capfd, tmp_path / "one.mkv", "--bundle", bundle, "--frames", 1, "--save-outputs", tmp_path / "o.npz")[0]
        == 0
    )
    with np.load(tmp_path / "o.npz") as saved:
        assert saved["frames"].tolist() == [0]


def test_frames_get_the_answers_of_the_same_pictures(
    capfd: pytest.CaptureFixture[str], bundle: Path, scope: Scope, clip: Path
) -> None:
    status, out, err = run(
        capfd, clip, "--bundle", bundle, "--json", "--eta", 0.6, "--every", 2, "--batch", 4, "--threads", 1,
        "--kernel", "function",
    )  # fmt: skip
    assert (status, err) == (0, "")
    lines = [json.loads(line) for line in out.splitlines()]
    assert [line["frame"] for line in lines] == [
        {"index": n, "time_s": pytest.approx(n * 0.04)} for n in range(0, 12, 2)
    ]
    assert {line["source"] for line in lines} == {str(clip)}
    assert {line["stage"] for line in lines} == {"coarse", "fine"}
    for line, frame in zip(lines, clips.frames(clip, 2), strict=True):
        expected = scope(Image.fromarray(frame.pixels()), eta=0.6)
        assert (line["stage"], line["topk"][0]["index"]) == (expected.stage, expected.answer.index)
        assert line["confidence"] == pytest.approx(expected.confidence, abs=1e-5)


def test_for_people_a_line_a_frame_and_a_summary(capfd: pytest.CaptureFixture[str], bundle: Path, clip: Path) -> None:
    status, out, err = run(capfd, clip, "--bundle", bundle, "--stats", "--deadline-ms", 5000, "--frames", 11)
    assert status == 0
    lines = out.splitlines()
    assert len(lines) == 1 + 11 + 1
    assert lines[0].startswith("weights: ")
    assert lines[3].startswith(f"{clip} #2 0.08 s  label ")
    assert lines[-1].startswith("11 frames, ")
    assert "11 images" in err
    assert "deadline met by 11 of 11" in err


def test_outputs_have_the_frames_numbers(
    capfd: pytest.CaptureFixture[str], bundle: Path, clip: Path, tmp_path: Path
) -> None:
    Image.new("RGB", (64, 48)).save(tmp_path / "p.png")
    target = tmp_path / "o.npz"
    status, _, err = run(
        capfd, tmp_path / "p.png", clip, "--bundle", bundle, "--save-outputs", target, "--frames", 3, "--every", 5
    )
    assert (status, err) == (0, "")
    with np.load(target) as saved:
        assert saved["frames"].tolist() == [-1, 0, 5, 10]
        assert saved["sources"].tolist() == [str(tmp_path / "p.png"), *[str(clip)] * 3]


def test_overlays_become_a_video(capfd: pytest.CaptureFixture[str], bundle: Path, clip: Path, tmp_path: Path) -> None:
    other = tmp_path / "other" / "clip.mkv"
    other.parent.mkdir()
    clips.write_clip(other, clips.grey_frames(3), times_ms=[0, 100, 1000], codec="ffv1")
    target = tmp_path / "vis"
    status, _, err = run(capfd, clip, other, "--bundle", bundle, "--save-vis", target)
    assert (status, err) == (0, "")
    assert sorted(path.name for path in target.iterdir()) == ["clip-2.overlay.mp4", "clip.overlay.mp4"]
    assert [frame.stamp.time_s for frame in clips.frames(target / "clip-2.overlay.mp4")] == pytest.approx(
        [0.0, 0.1, 1.0]
    )
    shown = clips.frames(target / "clip.overlay.mp4")
    assert len(shown) == 12
    assert shown[0].pixels().shape[1] > 700


def test_an_overlay_video_that_cannot_be_written_is_not_left(
    capfd: pytest.CaptureFixture[str], bundle: Path, clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mscope.core.files.os.fdopen", lambda handle, mode: _FullDisk(handle))
    status, _, err = run(capfd, clip, "--bundle", bundle, "--save-vis", tmp_path / "vis", "--json")
    assert status == 1
    assert err.count("\n") == 1
    assert "No space left on device" in err
    assert list((tmp_path / "vis").iterdir()) == []


class _FullDisk:
    """A file on a disk without room."""

    def __init__(self, handle: int) -> None:
        os.close(handle)

    def __enter__(self) -> _FullDisk:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def write(self, data: bytes) -> int:
        raise OSError(28, "No space left on device")

    def seek(self, *_: int) -> int:
        return 0

    def tell(self) -> int:
        return 0


def test_a_broken_clip_does_not_stop_the_others(
    capfd: pytest.CaptureFixture[str], bundle: Path, clip: Path, tmp_path: Path
) -> None:
    (tmp_path / "bad.mp4").write_bytes(b"no video")
    status, out, err = run(capfd, tmp_path / "bad.mp4", clip, "--bundle", bundle, "--json")
    assert (status, len(out.splitlines()), err.count("\n")) == (1, 12, 1)
    assert run(capfd, tmp_path / "bad.mp4", "--bundle", bundle, "--json")[0] == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("p.png", "--every", 2), "--every is for videos and cameras"),
        (("p.png", "--frames", 2), "--frames is for videos and cameras"),
        (("camera:0", "--batch", 2), "camera:0: frames of a camera do not wait for a batch"),
        (("clip.mkv", "--save-outputs", "o.npz"), "say how many frames with --frames"),
        (("none.mp4", "--every", 2), "none.mp4: no such file"),
        (("clip.mkv", "--every", 0), "--every"),
    ],
)
def test_options_that_do_not_go_together(
    arguments: tuple[object, ...], message: str, capfd: pytest.CaptureFixture[str], bundle: Path, clip: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(clip.parent)
    Image.new("RGB", (64, 48)).save("p.png")
    status, out, err = run(capfd, *arguments, "--bundle", bundle)
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert message in err


@pytest.mark.parametrize("source", ["clip", "camera:0"])
def test_without_the_package_the_error_names_the_extra(
    source: str, capfd: pytest.CaptureFixture[str], bundle: Path, clip: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "av", None)
    status, _, err = run(capfd, clip if source == "clip" else source, "--bundle", bundle)
    assert (status, err.count("\n")) == (1, 1)
    assert "pip install 'mambascope-deploy[video]'" in err


def test_ctrl_c_in_a_clip_ends_with_the_summary(bundle: Path, tmp_path: Path) -> None:
    clips.write_clip(tmp_path / "x.mkv", clips.grey_frames(3000), codec="ffv1")
    target = tmp_path / "vis"
    with subprocess.Popen(
        [sys.executable, "-m", "mscope.runtime.cli", tmp_path / "x.mkv", "--bundle", bundle, "--save-vis", target],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    ) as process:  # fmt: skip
        assert process.stdout is not None
        while "#3 " not in process.stdout.readline():
            assert process.poll() is None
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (130, "error: interrupted\n")
    summary = out.splitlines()[-1]
    assert " frames, " in summary
    # What was seen is there, as a whole video.
    assert [path.name for path in target.iterdir()] == ["x.overlay.mp4"]
    assert len(clips.frames(target / "x.overlay.mp4")) == pytest.approx(int(summary.split()[0]), abs=1)
