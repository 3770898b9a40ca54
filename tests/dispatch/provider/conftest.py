"""Fixtures of the tests here."""

from __future__ import annotations

import pytest

from serve_app.dispatch.provider import pool as module


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hardly any pause between attempts, where the clock is real."""
    monkeypatch.setattr(module, "FIRST_BACKOFF_S", 0.001)
