"""Videos as sources: frames, times, rotation, damage, what is let in, and a run over one."""

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
from mscope.core.errors import InputError
from mscope.runtime import Scope
from mscope.runtime.cli import app
from mscope.runtime.video import frame as frame_module
from mscope.runtime.video.clip import clip_frames
from mscope.runtime.video.frame import Frame
from mscope.runtime.video.frames import frames_of
from mscope.runtime.video.stream import Stream, live_stream

av = clips.av


def stream(path: Path) -> Stream:
    return Stream(str(path), str(path))


def frames(path: Path, every: int = 1, limit: int | None = None) -> list[Frame]:
    return list(clip_frames(stream(path), every, limit))


def problem(path: Path) -> tuple[int, str]:
    """How many frames came before the error, and the error."""
    found = 0
    with pytest.raises(InputError) as caught:
        for _ in clip_frames(stream(path)):
            found += 1
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)
    return found, str(caught.value)


def test_every_frame_of_a_lossless_clip_is_what_was_put_in(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    pixels = [rng.integers(0, 256, (48, 64, 3), np.uint8) for _ in range(6)]
    clips.write_clip(tmp_path / "x.mkv", pixels, codec="ffv1")
    found = frames(tmp_path / "x.mkv")
    assert [frame.stamp.index for frame in found] == list(range(6))
    assert [frame.stamp.time_s for frame in found] == pytest.approx([0.04 * n for n in range(6)])
    assert all(frame.stamp.dropped is None and frame.read_ms > 0 for frame in found)
    for frame, expected in zip(found, pixels, strict=True):
        np.testing.assert_array_equal(frame.pixels(), expected)


def test_every_nth_and_a_limit(tmp_path: Path) -> None:
    clips.write_clip(tmp_path / "x.mkv", clips.grey_frames(20), codec="ffv1")
    assert [frame.stamp.index for frame in frames(tmp_path / "x.mkv", 7)] == [0, 7, 14]
    assert [frame.stamp.index for frame in frames(tmp_path / "x.mkv", 7, 2)] == [0, 7]
    assert [int(frame.pixels()[0, 0, 0]) for frame in frames(tmp_path / "x.mkv", 5)] == [0, 40, 80, 120]
    for every, limit in ((0, None), (1, 0)):
        with pytest.raises(InputError, match="1 or more"):
            frames_of(stream(tmp_path / "x.mkv"), every, limit)


def test_frames_are_decoded_as_they_are_asked_for(tmp_path: Path) -> None:
    clips.write_clip(tmp_path / "x.mkv", clips.grey_frames(200), codec="ffv1")
    content = (tmp_path / "x.mkv").read_bytes()
    (tmp_path / "half.mkv").write_bytes(content[: len(content) // 2])
    # The end of the file is not looked at before its beginning was handed out.
    first = next(clip_frames(stream(tmp_path / "half.mkv")))
    assert first.stamp.index == 0


def test_variable_frame_rate(tmp_path: Path) -> None:
    times = [0, 40, 500, 510, 2000]
    for name in ("x.mkv", "x.mp4"):
        codec = "ffv1" if name.endswith("mkv") else "libx264"
        clips.write_clip(tmp_path / name, clips.grey_frames(5), times_ms=times, codec=codec)
        found = [frame.stamp.time_s for frame in frames(tmp_path / name)]
        assert found == pytest.approx([t / 1000 for t in times], abs=1e-3), name


def test_times_begin_at_the_clips_own_beginning(tmp_path: Path) -> None:
    clips.write_clip(tmp_path / "x.mkv", clips.grey_frames(3), times_ms=[5000, 5040, 5080], codec="ffv1")
    assert [frame.stamp.time_s for frame in frames(tmp_path / "x.mkv")] == pytest.approx([0.0, 0.04, 0.08])


def test_rotation_is_applied(tmp_path: Path) -> None:
    quarters = np.zeros((48, 64, 3), np.uint8)
    quarters[:24, :32] = 255  # white at the top left
    clips.write_clip(tmp_path / "x.mp4", [quarters] * 2)
    (upright,) = frames(tmp_path / "x.mp4", limit=1)
    assert upright.pixels().shape == (48, 64, 3)
    clips.turn_clockwise(tmp_path / "x.mp4")
    (turned,) = frames(tmp_path / "x.mp4", limit=1)
    pixels = turned.pixels().astype(int)
    assert pixels.shape == (64, 48, 3)
    corners = pixels[8, 8, 0], pixels[8, -8, 0], pixels[-8, 8, 0], pixels[-8, -8, 0]
    assert [bool(corner > 200) for corner in corners] == [False, True, False, False], "white goes to the top right"


@pytest.mark.parametrize(("size", "matrix"), [((64, 48), "ITU601"), ((1280, 720), "ITU709")])
def test_untagged_colours_are_taken_as_players_take_them(size: tuple[int, int], matrix: str, tmp_path: Path) -> None:
    red = np.zeros((size[1], size[0], 3), np.uint8)
    red[..., 0] = 200
    source = av.VideoFrame.from_ndarray(red, format="rgb24").reformat(format="yuv444p", dst_colorspace=matrix)
    source.colorspace = 2  # unspecified
    pixels = frame_module.pixels_of(source, "x")
    # 8 bits for each of Y, Cb and Cr: half a step of rounding in each, times at most 1.8 in the sum.
    np.testing.assert_allclose(pixels.astype(int), red, atol=3)


# Bad files


def test_files_that_are_no_video(tmp_path: Path) -> None:
    path = tmp_path / "x.mp4"
    for content in (b"text", b"\0" * 5000, b"#!/bin/sh\n" * 100):
        path.write_bytes(content)
        assert problem(path) == (0, f"{path}: not a video that can be read, or its index is cut off ({_reason(path)})")
    path.write_bytes(b"")
    assert problem(path)[1] == f"{path}: the file is empty (0 bytes)"
    path.unlink()
    assert "No such file" in problem(path)[1]


def _reason(path: Path) -> str:
    with pytest.raises(av.FFmpegError) as caught:
        av.open(f"file:{path}")
    return str(caught.value.strerror)


def test_playlists_that_name_other_files_are_not_followed(tmp_path: Path) -> None:
    clips.write_clip(tmp_path / "secret.mp4", clips.grey_frames(3))
    path = tmp_path / "list.mp4"
    path.write_text("ffconcat version 1.0\nfile secret.mp4\n")
    with av.open(str(path)) as container:
        assert container.format.name == "concat", "FFmpeg itself would follow it"
    assert problem(path)[0] == 0


def test_a_name_that_looks_like_an_address_is_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    clips.write_clip(Path("x.mkv"), clips.grey_frames(2), codec="ffv1")
    Path("x.mkv").rename("tcp:1.mkv")
    assert len(frames(Path("tcp:1.mkv"))) == 2


def test_sound_without_video(tmp_path: Path) -> None:
    path = tmp_path / "x.mp4"
    with av.open(str(path), "w") as container:
        sound = container.add_stream("aac", rate=8000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.sample_rate, frame.pts = 8000, 0
        for packet in (*sound.encode(frame), *sound.encode()):
            container.mux(packet)
    assert problem(path) == (0, f"{path}: has no video in it")


def test_a_video_without_frames(tmp_path: Path) -> None:
    path = tmp_path / "x.avi"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mjpeg", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuvj420p"
        container.start_encoding()
    assert problem(path) == (0, f"{path}: has no frames in it")


def test_damage_on_the_way_is_passed_over_and_told(tmp_path: Path) -> None:
    path = tmp_path / "x.avi"
    rng = np.random.default_rng(0)
    noise = [rng.integers(0, 256, (48, 64, 3), np.uint8) for _ in range(9)]
    clips.write_clip(path, noise, codec="mjpeg")
    content = bytearray(path.read_bytes())
    starts = [at for at in range(len(content) - 3) if content[at : at + 3] == b"\xff\xd8\xff"]
    assert len(starts) == 9
    content[starts[4] : starts[5] - 8] = bytes(starts[5] - 8 - starts[4])
    path.write_bytes(content)
    assert problem(path) == (8, f"{path}: 1 damaged part was left out; 8 frames are done")


def test_a_clip_that_was_cut_off(tmp_path: Path) -> None:
    path = tmp_path / "x.mp4"
    rng = np.random.default_rng(0)
    noise = [rng.integers(0, 256, (48, 64, 3), np.uint8) for _ in range(50)]
    # With its index in front, as on the web; without it nothing can be read.
    clips.write_clip(path, noise, options={"movflags": "faststart"}, gop=1)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    found, said = problem(path)
    assert 15 < found < 35
    assert f"of 2.0 s, as if cut off; {found} frames are done" in said


def test_frames_that_are_too_large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clips.write_clip(tmp_path / "x.mkv", clips.grey_frames(3), codec="ffv1")
    for module in ("frame", "container"):
        monkeypatch.setattr(f"mscope.runtime.video.{module}.MAX_FRAME_PIXELS", 64 * 48 - 1)
    found, said = problem(tmp_path / "x.mkv")
    assert found == 0
    assert "64 x 48 pixels" in said


def test_the_decoder_itself_refuses_frames_that_are_too_large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stream may announce one size and send another."""
    clips.write_clip(tmp_path / "x.mp4", clips.grey_frames(3))
    monkeypatch.setattr("mscope.runtime.video.container.MAX_FRAME_PIXELS", 64 * 48 - 1)
    assert problem(tmp_path / "x.mp4") == (0, f"{tmp_path}/x.mp4: no frame of it can be decoded")


# A run


def run(capfd: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    status = run_app(app, [str(argument) for argument in arguments])
    return status, *capfd.readouterr()


@pytest.fixture
def clip(tmp_path: Path, network: fakes.FakeNetwork) -> Path:
    """Twelve frames, lossless, some of which exit at eta 0.6 and some do not."""
    images = fakes.random_images(network.config, 12).transpose(0, 2, 3, 1)
    clips.write_clip(tmp_path / "clip.mkv", list(np.clip(images * 127 + 128, 0, 255).astype(np.uint8)), codec="ffv1")
    return tmp_path / "clip.mkv"


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
    for line, frame in zip(lines, frames(clip, 2), strict=True):
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
    assert [frame.stamp.time_s for frame in frames(target / "clip-2.overlay.mp4")] == pytest.approx([0.0, 0.1, 1.0])
    shown = frames(target / "clip.overlay.mp4")
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
    assert len(frames(target / "x.overlay.mp4")) == pytest.approx(int(summary.split()[0]), abs=1)


@pytest.mark.parametrize(
    ("argument", "address", "device"),
    [
        ("camera:0", "/dev/video0", True),
        ("camera", "/dev/video0", True),
        ("cam:12", "/dev/video12", True),
        ("/dev/video3", "/dev/video3", True),
        ("rtsp://host:554/a?b=c", "rtsp://host:554/a?b=c", False),
        ("udp://127.0.0.1:5000", "udp://127.0.0.1:5000", False),
    ],
)
def test_live_streams_by_name(argument: str, address: str, device: bool) -> None:
    assert live_stream(argument) == Stream(argument, address, live=True, device=device)


def test_names_that_are_no_live_stream() -> None:
    assert [live_stream(name) for name in ("0", "camera.jpg", "camera:", "cameras", "/dev/null", "file:///x")] == [
        None
    ] * 6


def test_a_password_is_not_repeated() -> None:
    found = live_stream("rtsp://me:secret@host/stream")
    assert found == Stream("rtsp://host/stream", "rtsp://me:secret@host/stream", live=True)
