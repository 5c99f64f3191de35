"""`mscope-run` and `mscope-profile` from their first line on."""

from __future__ import annotations

from mscope.core.entry import enter


def run() -> None:
    """Entry point of `mscope-run`."""
    enter("mscope.runtime.cli")


def profile() -> None:
    """Entry point of `mscope-profile`."""
    enter("mscope.runtime.profiling.cli")
