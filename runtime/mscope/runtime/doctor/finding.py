"""One line of the doctor's: a component, whether it can be used, and what to do if not."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

# ok: usable. warning: usable, with something to know. missing: not there, and not needed by everybody. broken: there,
# and does not work, or needed by everybody.
Level = Literal["ok", "warning", "missing", "broken"]


@dataclass(frozen=True)
class Finding:
    """What a probe found.

    Attributes:
        component: such as "CUDA driver".
        level: see `Level`.
        detail: versions and places, or why it cannot be used.
        mend: a command, or a sentence where no command does it; "" where nothing needs mending.
    """

    component: str
    level: Level
    detail: str
    mend: str = ""

    @property
    def usable(self) -> bool:
        return self.level in ("ok", "warning")

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {
            "component": self.component,
            "level": self.level,
            "usable": self.usable,
            "detail": self.detail,
            "mend": self.mend,
        }
