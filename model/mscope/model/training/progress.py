"""How a run is shown: a bar on a terminal, a line now and then in a pipe; and how it is asked to stop."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from mscope.model.training.loop import Progress


class Reporter:
    """A listener of Trainer on stderr, to be entered as a context manager.

    Inside it the first Ctrl-C (or SIGTERM) only asks the run to stop after its step; a second one interrupts at once.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._stop = threading.Event()
        self._handlers: dict[signal.Signals, Any] = {}
        self._bar: Bar | None = None
        self._task: Any = None
        if console.is_terminal:
            self._bar = Bar(
                TextColumn("{task.description}"),
                BarColumn(),
                TextColumn("{task.completed}/{task.total} steps"),
                TextColumn("{task.fields[figures]}"),
                TimeRemainingColumn(),
                console=console,
            )

    def __enter__(self) -> Reporter:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._handlers[number] = signal.signal(number, self._ask_to_stop)
        if self._bar is not None:
            self._bar.start()
            self._task = self._bar.add_task("training", total=None, figures="")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        if self._bar is not None:
            self._bar.stop()

    def progress(self, progress: Progress) -> None:
        """One step's figures."""
        figures = (
            f"loss {progress.loss:.3f}  accuracy {100 * progress.accuracy:.1f} %  lr {progress.lr:.1e}"
            f"  {progress.samples_per_s:.0f} samples/s"
        )
        if progress.validation:
            told = ", ".join(f"{name} {100 * value:.1f} %" for name, value in progress.validation.items())
            self.message(f"step {progress.step}: validation: {told}")
        if self._bar is not None:
            self._bar.update(
                self._task,
                description=progress.phase,
                completed=progress.step,
                total=progress.steps,
                figures=figures,
            )
        else:
            self._print(f"step {progress.step}/{progress.steps}  {progress.phase}  {figures}")

    def message(self, text: str) -> None:
        """A line of its own."""
        self._print(text)

    def stop_requested(self) -> bool:
        return self._stop.is_set()

    def _print(self, text: str) -> None:
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)

    def _ask_to_stop(self, number: int, frame: FrameType | None) -> None:
        if self._stop.is_set():
            raise KeyboardInterrupt
        self._stop.set()
