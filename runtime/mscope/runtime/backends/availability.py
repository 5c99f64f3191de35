"""Whether a backend can be had here, and what is missing."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Availability:
    """Whether a backend can be had here. `missing` says what is lacking and how to get it; empty when available."""

    name: str
    package: str
    library: str
    device: str
    version: str | None
    missing: str = ""

    @property
    def available(self) -> bool:
        return not self.missing
