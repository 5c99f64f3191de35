"""Live streams: the newest frame, what is dropped, how they end. A stand-in of the network takes the camera's place."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from itertools import pairwise
from pathlib import Path

import pytest

import clips
import fakes
from mscope.core.errors import InputError
from mscope.runtime import Scope
from mscope.runtime.deadline import Deadline
from mscope.runtime.session import RunOptions, run_items
from mscope.runtime.video import live
from mscope.runtime.video.live import LatestFrame, live_frames
from mscope.runtime.video.stream import Stream, live_stream


def stream(address: str) -> Stream:
    found = live_stream(address)
    assert found is not None
    return found


@pytest.fixture(scope="module")
def film(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Fifty frames of a kind that is sent over a network."""
    path = tmp_path_factory.mktemp("film") / "film.ts"
    clips.write_clip(path, clips.grey_frames(50, (192, 144), step=4), gop=5)
    return path


def test_the_newest_frame_is_taken_and_the_others_are_counted() -> None:
    place = LatestFrame()
    place.put(0, 1.0, "a")
    first = place.take()
    assert first is not None
    assert (first.index, first.at, first.dropped, first.picture) == (0, 1.0, 0, "a")
    for index in range(1, 5):
        place.put(index, 1.0 + index, "b")
    latest = place.take()
    assert latest is not None
    assert (latest.index, latest.at, latest.dropped) == (4, 5.0, 3)
    place.put(5, 6.0, "c")
    place.end()
    last = place.take()
    assert last is not None, "what lies ready is looked at, also after the end"
    assert (last.index, last.dropped) == (5, 0)
    assert place.take() is None


def test_an_error_comes_after_the_last_frame() -> None:
    place = LatestFrame()
    place.put(0, 0.0, "a")
    place.end(InputError("unplugged"))
    assert place.take() is not None
    with pytest.raises(InputError, match="unplugged"):
        place.take()


def test_taking_waits_for_a_frame() -> None:
    place = LatestFrame()
    timer = threading.Timer(0.1, lambda: place.put(7, 0.0, "late"))
    timer.start()
    found = place.take()
    timer.join()
    assert found is not None
    assert found.index == 7


def test_a_slow_reader_sees_the_newest_frames(film: Path) -> None:
    notes: list[str] = []
    seen = []
    with clips.served(film, seconds=2.0) as address:
        for frame in live_frames(stream(address), on_note=notes.append):
            seen.append(frame.stamp)
            time.sleep(0.3)
    assert 2 <= len(seen) < 25, "fifty frames in two seconds, 0.3 s for each that is looked at"
    indices = [stamp.index for stamp in seen]
    assert indices == sorted(set(indices))
    # Every frame up to the last one was seen or counted as dropped.
    assert [stamp.dropped for stamp in seen[1:]] == [b - a - 1 for a, b in pairwise(indices)]
    assert seen[0].dropped == indices[0]
    dropped = sum(stamp.dropped or 0 for stamp in seen)
    assert dropped > 0
    assert notes == [f"{address}: {len(seen)} frames looked at, {dropped} dropped because a newer one was there"]
    assert all(stamp.time_s is not None and stamp.age_ms is not None and stamp.age_ms >= 0 for stamp in seen)
    assert seen[0].time_s == 0.0


def test_every_nth_frame_of_a_camera_and_a_limit(film: Path) -> None:
    with clips.served(film, seconds=1.0) as address:
        seen = [frame.stamp.index for frame in live_frames(stream(address), 5, 3)]
    assert len(seen) == 3
    assert all(index % 5 == 0 for index in seen)


def test_nobody_there(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"^tcp://127\.0\.0\.1:9: cannot be opened \(Connection refused\)$"):
        list(live_frames(stream("tcp://127.0.0.1:9")))
    with pytest.raises(InputError, match=r"^camera:999: no such camera; this machine has "):
        list(live_frames(stream("camera:999")))


def test_a_reader_without_pyav_tells_the_one_who_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "av", None)
    latest = LatestFrame()
    live._read(stream("camera:0"), 1, latest, threading.Event(), live._Damage(), time.perf_counter)
    with pytest.raises(ModuleNotFoundError, match="av"):
        latest.take()


def test_a_camera_that_says_nothing(film: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mscope.runtime.video.container._TIMEOUT_S", 0.5)
    seen = []
    with clips.served(film, seconds=0.2, hold_open=True) as address, pytest.raises(InputError) as caught:
        for frame in live_frames(stream(address)):
            seen.append(frame)
    assert seen, "what came before is looked at"
    assert str(caught.value) == f"{address}: broke off (nothing came for 0.5 s)"


def test_a_stream_of_something_else(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"hello\n" * 1000)
    with clips.served(tmp_path / "x", seconds=0.1) as address, pytest.raises(InputError, match="tcp://"):
        list(live_frames(stream(address)))


def test_a_stream_cannot_name_files_of_this_machine(tmp_path: Path, film: Path) -> None:
    (tmp_path / "x").write_text(f"ffconcat version 1.0\nfile {film}\n" + "# \n" * 5000)
    with clips.served(tmp_path / "x", seconds=0.1) as address, pytest.raises(InputError, match="cannot be opened"):
        list(live_frames(stream(address)))


def test_a_deadline_counts_from_the_frames_arrival(film: Path, scope: Scope, monkeypatch: pytest.MonkeyPatch) -> None:
    deadline = Deadline(10_000.0)
    deadline.warm_up(scope, 1)
    begun: list[float] = []
    start = deadline.start

    def noted(already_ms: float = 0.0) -> None:
        begun.append(already_ms)
        start(already_ms)

    monkeypatch.setattr(deadline, "start", noted)
    problems: list[InputError] = []
    with clips.served(film, seconds=1.0) as address:
        options = RunOptions(frames=3)
        found = []
        for result in run_items(scope, [stream(address)], options, deadline=deadline, on_problem=problems.append):
            found.append(result)
            time.sleep(0.2)
    assert problems == []
    assert [result.frame.age_ms for result in found if result.frame] == begun
    # The second lay ready while the first was being looked at.
    assert begun[1] > 0.0
    assert all(result.deadline and result.deadline.elapsed_ms >= age for result, age in zip(found, begun, strict=True))


@pytest.mark.parametrize(("hangs", "number"), [(False, signal.SIGINT), (True, signal.SIGINT), (False, signal.SIGTERM)])
def test_ctrl_c_is_how_a_camera_ends(bundle: Path, film: Path, tmp_path: Path, hangs: bool, number: int) -> None:
    """With its summary, its arrays and status 0; also while no frame comes, and where a service manager ends it."""
    target = tmp_path / "o.npz"
    with clips.served(film, seconds=0.5 if hangs else 4.0, hold_open=True) as address:
        arguments = [address, "--bundle", bundle, "--json", "--stats", "--save-outputs", target, "--frames", "100000"]
        with subprocess.Popen(
            [sys.executable, "-m", "mscope.runtime.cli", *map(str, arguments)],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        ) as process:  # fmt: skip
            assert process.stdout is not None
            first = process.stdout.readline()
            time.sleep(0.8 if hangs else 0.1)
            process.send_signal(number)
            out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    lines = [json.loads(line) for line in (first + out).splitlines()]
    assert set(lines[0]["frame"]) == {"index", "time_s", "dropped", "age_ms"}
    note, stats = err.splitlines()
    # One that was being looked at when the signal came has no line.
    looked_at = int(note.removeprefix(f"note: {address}: ").split()[0])
    assert looked_at - len(lines) in (0, 1)
    assert json.loads(stats)["stats"]["images"] == len(lines)
    assert target.exists()


def test_a_camera_takes_the_place_of_a_picture(bundle: Path, film: Path, network: fakes.FakeNetwork) -> None:
    with clips.served(film, seconds=0.5) as address, Scope.load(bundle) as scope:
        problems: list[InputError] = []
        found = list(run_items(scope, [stream(address)], RunOptions(), on_problem=problems.append))
    assert problems == []
    assert found
    assert all(result.source == address and result.frame is not None for result in found)
    # Converting and resizing: decoding happened in the reader's thread.
    assert all(result.latency_ms["preprocess"] > 0 for result in found)


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
