"""Fixtures of the tests here."""

import csv
from collections.abc import Iterator

import pytest

from serve_app.driver.sources import files as sources


@pytest.fixture
def short_lines(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    limit = csv.field_size_limit()
    monkeypatch.setattr(sources, "LONGEST_LINE", 64)
    yield
    csv.field_size_limit(limit)
