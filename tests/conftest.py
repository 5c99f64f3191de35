"""What holds for every test."""

import os
import signal

import pytest

# ONNX Runtime reports to its maker what it runs, unless this is set before it is imported.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")


def pytest_configure(config: pytest.Config) -> None:
    """A shell's background job ignores Ctrl-C, and so do its children: the tests that send it need the usual state."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
