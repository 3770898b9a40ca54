"""Fixtures of the tests here."""

import csv
from collections.abc import Iterator

import pytest

from serve_app.tables import lines


@pytest.fixture
def short_lines(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    limit = csv.field_size_limit()
    monkeypatch.setattr(lines, "LONGEST_LINE", 64)
    yield
    csv.field_size_limit(limit)
