"""Short runs of the model checker, and that it finds what it is there for."""

from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from benchmarks.store_model import __main__ as checker
from benchmarks.store_model import backends
from benchmarks.store_model.history import run
from serve_app.driver.store.log import OutcomeLog
from serve_app.storage.bucket import Bucket, Version


@pytest.mark.parametrize(("store", "histories"), [("memory", 150), ("local", 80), ("s3", 12)])
def test_two_drivers_at_once_lose_nothing_whatever_happens_to_their_requests(store: str, histories: int) -> None:
    found = checker.explore(store, range(histories))
    assert found["histories"] == histories
    assert found["killed"] + found["refused"] + found["unanswered"] > histories / 2
    assert not any(found[finding] for finding in checker.FINDINGS), found


def test_the_checker_finds_losses_without_conditions_or_locks(capsys: pytest.CaptureFixture[str]) -> None:
    def whatever_stands_there(self: Bucket, key: str, data: bytes, seen: Version | None) -> Version:
        self.put(key, data)
        return {"e_tag": "any"}

    with mock.patch.object(Bucket, "put_if", whatever_stands_there):
        assert checker.explore("memory", range(40))["lost"]
    shown = capsys.readouterr().out
    assert "A puts manifest.json" in shown

    class Unlocked(backends._Lock):
        def __enter__(self) -> None:
            pass

        def __exit__(self, *_: object) -> None:
            pass

    with mock.patch.object(backends, "_Lock", Unlocked):
        assert checker.explore("local", range(60))["lost"]


def test_the_checker_finds_deletions_of_what_a_later_writer_names() -> None:
    def sweep(self: OutcomeLog) -> None:
        for info in self._segments.list():
            if info.base_name not in {segment.name for segment in self._mine.segments}:
                self._segments.delete(info.base_name)

    with mock.patch.object(OutcomeLog, "_sweep", sweep):
        assert checker.explore("memory", range(150))["lost"]


def test_a_seed_gives_the_same_history_again(tmp_path: Path) -> None:
    def requests() -> Any:
        with backends.Backend("memory") as backend:
            return [line.partition("-")[0] for line in run(backend.folder(), 7).log]

    assert requests() == requests()
