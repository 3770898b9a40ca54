"""vLLM configures logging, and Serve's log goes on."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from logging.config import dictConfig
from logging.handlers import MemoryHandler, RotatingFileHandler
from pathlib import Path

import pytest
from ray.serve._private.logging_utils import get_component_logger_file_path

from serve_app.serving.logs import SERVE_LOGGER, keep_serves_log


@pytest.fixture
def log(tmp_path: Path) -> Iterator[Path]:
    """As Serve's `configure_component_logger` sets it up."""
    path = tmp_path / "replica.log"
    handler = MemoryHandler(capacity=1, target=RotatingFileHandler(path))
    logger = logging.getLogger(SERVE_LOGGER)
    before, logger.handlers, level = logger.handlers, [handler], logger.level
    logger.setLevel(logging.INFO)
    yield path
    logger.handlers = before
    logger.setLevel(level)


def test_serves_log_goes_on_after_vllm_has_configured_logging(log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    logger = logging.getLogger(SERVE_LOGGER)
    logger.info("before")
    with keep_serves_log():
        dictConfig({"version": 1, "disable_existing_loggers": False})
    logger.info("after")
    assert log.read_text().splitlines() == ["before", "after"]


def test_without_it_the_controller_finds_no_log_and_stops_the_replica(log: Path) -> None:
    dictConfig({"version": 1, "disable_existing_loggers": False})
    with pytest.raises(AttributeError, match="baseFilename"):
        get_component_logger_file_path()
