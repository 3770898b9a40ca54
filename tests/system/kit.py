"""What tests of real clusters share."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from pathlib import Path


def wait_for(what: str, condition: Callable[[], bool], timeout_s: float) -> float:
    """Seconds that it took."""
    started = time.monotonic()
    while not condition():
        assert time.monotonic() - started < timeout_s, f"not within {timeout_s:g} s: {what}"
        time.sleep(0.5)
    return time.monotonic() - started


def dashboard(log: Path) -> str:
    """The URL of Ray's dashboard, as `serve run` logged it."""
    text = log.read_text()
    address = re.search(r"127\.0\.0\.1:\d+", text.partition("dashboard at")[2])
    assert address is not None, text
    return f"http://{address[0]}"
