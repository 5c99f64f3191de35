"""The command line of another Python that runs one of this project's modules."""

from __future__ import annotations

import sys


def module_command(module: str, *arguments: str) -> list[str]:
    """The command that runs `module` as `python -m module` would, but finds modules where this process does.

    `python -m` looks into the current folder first: a bundle that was unpacked there, or anybody's numpy.py, would be
    run in the place of what is meant. (`python -P` does not, from 3.11 on.)

    Args:
        module: its dotted name.
        arguments: what it finds in sys.argv.
    """
    path = [entry for entry in sys.path if isinstance(entry, str)]  # imports pass over anything else
    run = f"import runpy; runpy.run_module({module!r}, run_name='__main__', alter_sys=True)"
    return [sys.executable, "-c", f"import sys; sys.path[:] = {path!a}; {run}", *arguments]
