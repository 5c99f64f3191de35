"""The first lines of every command: while a command's modules are imported, Ctrl-C would end in Python's traceback."""

from __future__ import annotations

import sys


def enter(module: str) -> None:
    """Imports a command's module and calls its `main`; Ctrl-C at any time is a line and exit status 130.

    Imports nothing beforehand, so that little is left in which Ctrl-C is Python's.
    """
    try:
        from importlib import import_module

        import_module(module).main()
    except KeyboardInterrupt:
        # As mscope.core.console has it, which may be what was being imported.
        print("error: interrupted", file=sys.stderr)
        sys.exit(130)
