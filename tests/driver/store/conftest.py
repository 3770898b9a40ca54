"""Fixtures of the tests here."""

from pathlib import Path

import pytest


@pytest.fixture(params=["local", "s3"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A store's URL: what holds for one kind holds for the other."""
    if request.param == "local":
        return str(tmp_path / "runs")
    url: str = request.getfixturevalue("s3")
    return url.format(tmp_path.name)
