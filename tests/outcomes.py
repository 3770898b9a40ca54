"""Runs tests within a process that reports on them, and counts how they end."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

# Libraries that the runner has imported already cannot be rewritten by their plugins, which is a warning.
QUIET = ("-q", "-W", "ignore::pytest.PytestAssertRewriteWarning")


def run_tests(*arguments: str) -> Counter[str]:
    """How many passed, failed and were skipped of the tests that pytest's arguments name."""
    outcomes = Outcomes()
    pytest.main([*QUIET, *arguments], plugins=[outcomes])
    return outcomes.counts


class Outcomes:
    """A pytest plugin that counts tests by outcome; one whose set-up fails has failed."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter(passed=0, failed=0, skipped=0)

    def pytest_runtest_logreport(self, report: Any) -> None:
        if report.when == "call" or (report.when == "setup" and report.outcome != "passed"):
            self.counts[report.outcome] += 1

    def pytest_collectreport(self, report: Any) -> None:
        self.counts["failed"] += report.failed
