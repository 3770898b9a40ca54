"""Fixtures of the tests here."""

from __future__ import annotations

import pytest

from tests.serving.models.kit import Cluster


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Cluster:
    return Cluster(monkeypatch)
