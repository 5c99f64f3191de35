"""Videos that are damaged, too large or none: what is let in, and what is said of the rest."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

import clips
from mscope.core.errors import InputError
from mscope.runtime.video.clip import clip_frames

av = clips.av


def problem(path: Path) -> tuple[int, str]:
    """How many frames came before the error, and the error."""
    found = 0
    with pytest.raises(InputError) as caught:
        for _ in clip_frames(clips.stream(path)):
            found += 1
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)
    return found, str(caught.value)


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


def test_a_pipe_by_a_videos_name_is_no_file(tmp_path: Path) -> None:
    path = tmp_path / "x.mp4"
    os.mkfifo(path)
    assert problem(path)[1] == f"{path}: not a regular file"


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
    assert len(clips.frames(Path("tcp:1.mkv"))) == 2


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
