"""Serve's log of a replica, kept open beside vLLM's."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from logging.handlers import MemoryHandler

SERVE_LOGGER = "ray.serve"


@contextmanager
def keep_serves_log() -> Iterator[None]:
    """Give Serve's handlers their files back. vLLM calls `dictConfig`, which closes all handlers of the process.

    The replica's log would end there, and a controller that restarts asks for the file's name and stops a replica that
    has none (`get_component_logger_file_path` in Ray 2.60).
    """
    handlers = logging.getLogger(SERVE_LOGGER).handlers
    targets = [(handler, handler.target) for handler in handlers if isinstance(handler, MemoryHandler)]
    try:
        yield
    finally:
        for handler, target in targets:
            handler.setTarget(target)
