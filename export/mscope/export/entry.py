"""`mscope-export` from its first line on."""

from __future__ import annotations

from mscope.core.entry import enter


def export() -> None:
    """Entry point of `mscope-export`."""
    enter("mscope.export.cli")
