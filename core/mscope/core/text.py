"""Texts that others wrote, which may hold what a terminal obeys: names of files, labels, manifests."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

# C0 but for the tab, which commands nothing; delete, C1, and what Unicode ends a line with.
_CONTROL = re.compile("[\x00-\x08\x0a-\x1f\x7f-\x9f\u2028\u2029]")


def readable(name: str) -> str:
    """A name with what no terminal should get spelt out: bytes that are not UTF-8 (`\\udcff`), control characters."""
    text = name.encode("utf-8", "backslashreplace").decode()
    return _CONTROL.sub(lambda match: repr(match[0])[1:-1], text)


def control_character_in(content: Any) -> str | None:
    """Where parsed JSON holds a text with a control character, as keys and indices; None where none does."""
    waiting: list[tuple[str, Any]] = [("", content)]
    while waiting:
        where, value = waiting.pop()
        if isinstance(value, str):
            if _CONTROL.search(value):
                return readable(where[:200])
        elif isinstance(value, Mapping):
            for key, held in value.items():
                waiting += [(f"{where}.{key}".lstrip("."), part) for part in (key, held)]
        elif isinstance(value, list):
            waiting += [(f"{where}.{index}".lstrip("."), part) for index, part in enumerate(value)]
    return None
