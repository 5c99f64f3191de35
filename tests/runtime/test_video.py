"""Videos as sources: frames, times, rotation, colours."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import clips
from mscope.core.errors import InputError
from mscope.runtime.video import frame as frame_module
from mscope.runtime.video.clip import clip_frames
from mscope.runtime.video.frames import frames_of

av = clips.av


def test_every_frame_of_a_lossless_clip_is_what_was_put_in(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    pixels = [rng.integers(0, 256, (48, 64, 3), np.uint8) for _ in range(6)]
    clips.write_clip(tmp_path / "x.mkv", pixels, codec="ffv1")
    found = clips.frames(tmp_path / "x.mkv")
    assert [frame.stamp.index for frame in found] == list(range(6))
    assert [frame.stamp.time_s for frame in found] == pytest.approx([0.04 * n for n in range(6)])
    assert all(frame.stamp.dropped is None and frame.read_ms > 0 for frame in found)
    for frame, expected in zip(found, pixels, strict=True):
        np.testing.assert_array_equal(frame.pixels(), expected)


def test_every_nth_and_a_limit(tmp_path: Path) -> None:
    clips.write_clip(tmp_path / "x.mkv", clips.grey_frames(20), codec="ffv1")
    assert [frame.stamp.index for frame in clips.frames(tmp_path / "x.mkv", 7)] == [0, 7, 14]
    assert [frame.stamp.index for frame in clips.frames(tmp_path / "x.mkv", 7, 2)] == [0, 7]
    assert [int(frame.pixels()[0, 0, 0]) for frame in clips.frames(tmp_path / "x.mkv", 5)] == [0, 40, 80, 120]
    for every, limit in ((0, None), (1, 0)):
        with pytest.raises(InputError, match="1 or more"):
            frames_of(clips.stream(tmp_path / "x.mkv"), every, limit)


def test_frames_are_decoded_as_they_are_asked_for(tmp_path: Path) -> None:
    clips.write_clip(tmp_path / "x.mkv", clips.grey_frames(200), codec="ffv1")
    content = (tmp_path / "x.mkv").read_bytes()
    (tmp_path / "half.mkv").write_bytes(content[: len(content) // 2])
    # The end of the file is not looked at before its beginning was handed out.
    first = next(clip_frames(clips.stream(tmp_path / "half.mkv")))
    assert first.stamp.index == 0


def test_variable_frame_rate(tmp_path: Path) -> None:
    times = [0, 40, 500, 510, 2000]
    for name in ("x.mkv", "x.mp4"):
        codec = "ffv1" if name.endswith("mkv") else "libx264"
        clips.write_clip(tmp_path / name, clips.grey_frames(5), times_ms=times, codec=codec)
        found = [frame.stamp.time_s for frame in clips.frames(tmp_path / name)]
        assert found == pytest.approx([t / 1000 for t in times], abs=1e-3), name


def test_times_begin_at_the_clips_own_beginning(tmp_path: Path) -> None:
    clips.write_clip(tmp_path / "x.mkv", clips.grey_frames(3), times_ms=[5000, 5040, 5080], codec="ffv1")
    assert [frame.stamp.time_s for frame in clips.frames(tmp_path / "x.mkv")] == pytest.approx([0.0, 0.04, 0.08])


def test_rotation_is_applied(tmp_path: Path) -> None:
    quarters = np.zeros((48, 64, 3), np.uint8)
    quarters[:24, :32] = 255  # white at the top left
    clips.write_clip(tmp_path / "x.mp4", [quarters] * 2)
    (upright,) = clips.frames(tmp_path / "x.mp4", limit=1)
    assert upright.pixels().shape == (48, 64, 3)
    clips.turn_clockwise(tmp_path / "x.mp4")
    (turned,) = clips.frames(tmp_path / "x.mp4", limit=1)
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
