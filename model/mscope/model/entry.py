"""`mscope-train` from its first line on."""

from __future__ import annotations

from mscope.core.entry import enter


def train() -> None:
    """Entry point of `mscope-train`."""
    enter("mscope.model.training.cli")
