"""`mscope-export doctor`."""

from __future__ import annotations

import json

import typer

from mscope.core.console import echo
from mscope.export.commands.shared import DebugOption, JsonOption


def doctor(as_json: JsonOption = False, debug: DebugOption = False) -> int:
    """Says what of this machine can be used, what cannot and why, and the command that mends it.

    Exit status: 0 where some backend can run a bundle, 1 where none can.
    """
    from mscope.runtime.doctor.examine import examine

    found = examine()
    if as_json:
        typer.echo(json.dumps(found.to_dict(), ensure_ascii=False))
        return 0 if found.usable else 1
    width = max(len(finding.component) for finding in (*found.backends, *found.components))
    for title, findings in (("backends", found.backends), ("components", found.components)):
        echo(title)
        for finding in findings:
            mend = f"; to mend it: {finding.mend}" if finding.mend else ""
            echo(f"  {finding.component:<{width}}  {finding.level:<7}  {finding.detail}{mend}")
    return 0 if found.usable else 1
