"""Power on a Jetson: NVIDIA's `tegrastats`, run beside the measured loop, its lines read as they come."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import threading
import time
from collections.abc import Sequence

from mscope.runtime.profiling.sensors import Clock, PowerTrace, Reading, Recorder, SensorError
from mscope.runtime.profiling.tegrastats_line import MAX_CHARACTERS, parse_tegrastats, total_of

_PERIOD_S = 0.1
_FIRST_LINE_SECONDS = 5.0
_STOP_SECONDS = 5.0


class Tegrastats:
    """A `Sensor` over a tegrastats process. Each line is stamped when it arrives, not by the clock that it prints."""

    name = "tegrastats"

    def __init__(
        self,
        command: Sequence[str] | None = None,
        period_s: float = _PERIOD_S,
        clock: Clock = time.perf_counter,
    ) -> None:
        """`command` runs instead of the tegrastats of the path, with no interval added."""
        self._command = None if command is None else list(command)
        self._period_s = period_s
        self._recorder = Recorder(clock)
        self._process: subprocess.Popen[str] | None = None
        self._thread: threading.Thread | None = None
        self._first = threading.Event()
        self._stopping = False
        self._skipped = 0

    def start(self) -> None:
        """Raises SensorError: no tegrastats here, or it prints no power."""
        command = self._command or self._found()
        try:
            self._process = subprocess.Popen(
                command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, errors="replace", bufsize=1
            )
        except OSError as error:
            raise SensorError(f"{command[0]}: {error.strerror or error}") from None
        self._thread = threading.Thread(target=self._read, name="mscope-tegrastats", daemon=True)
        self._thread.start()
        if not self._first.wait(_FIRST_LINE_SECONDS) or not self._recorder.readings:
            self._end()
            raise SensorError("tegrastats prints no power rail: run it by hand to see what it says (some need sudo)")

    def stop(self) -> PowerTrace:
        self._end()
        rails = dict.fromkeys(name for reading in self._recorder.readings for name in reading.rails)
        total, words = total_of(rails)
        notes = (f"{self._skipped} lines of tegrastats had no power in them",) if self._skipped else ()
        return self._recorder.trace(self.name, "watts", total, words, self._period_s, notes)

    def _found(self) -> list[str]:
        path = shutil.which("tegrastats")
        if path is None:
            raise SensorError("no tegrastats: this is not a Jetson")
        return [path, "--interval", str(round(self._period_s * 1e3))]

    def _read(self) -> None:
        assert self._process is not None
        assert self._process.stdout is not None
        # Bounded: a program that prints no line breaks cannot fill the memory.
        while line := self._process.stdout.readline(MAX_CHARACTERS + 1):
            parsed = parse_tegrastats(line.strip())
            if parsed is None or not parsed.rails_mw:
                self._skipped += 1
                continue
            watts = {name: milliwatts / 1e3 for name, milliwatts in parsed.rails_mw.items()}
            self._recorder.add(Reading(watts, parsed.temperature_c, parsed.clocks_mhz))
            self._first.set()
        if not self._stopping:
            self._recorder.lost = "tegrastats ended by itself"
        self._first.set()

    def _end(self) -> None:
        self._stopping = True
        process, thread = self._process, self._thread
        if process is None:
            return
        with contextlib.suppress(OSError):
            process.terminate()
        try:
            process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        if thread is not None:
            thread.join(_STOP_SECONDS)
        if process.stdout is not None:
            process.stdout.close()
