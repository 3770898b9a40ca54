"""The log against a list in memory, whatever writers, readers and crashes do."""

import os
import tempfile
from collections.abc import Iterator
from unittest import mock

import pyarrow as pa
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, rule

from serve_app.driver.store.log import OutcomeLog
from serve_app.errors import JobConflict, StoreError
from tests.driver.store.kit import ids, some, writer


class Log(RuleBasedStateMachine):
    """Any order of commits, takeovers, errors and readers against a list."""

    stale, readers = Bundle("stale"), Bundle("readers")

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        # No power fails here, and the disk's patience is another test's.
        self.fsync = mock.patch("os.fsync")
        self.fsync.start()
        self.model: list[str] = []
        self.next = 0

    def teardown(self) -> None:
        self.fsync.stop()
        self.folder.cleanup()

    def _new(self, count: int) -> list[str]:
        self.next += count
        return [str(i) for i in range(self.next - count, self.next)]

    @initialize()
    def create(self) -> None:
        self.log = writer(self.folder.name, fan_out=3)

    @rule(count=st.integers(0, 4))
    def append(self, count: int) -> None:
        rows = self._new(count)
        self.log.append(some(*rows), {"ok": len(self.model) + count})
        self.model += rows

    @rule(commits=st.integers(1, 10))
    def append_often(self, commits: int) -> None:
        for _ in range(commits):
            self.append(1)

    @rule(target=stale)
    def take_over(self) -> OutcomeLog:
        return self._take_over()

    def _take_over(self) -> OutcomeLog:
        stale, self.log = self.log, writer(self.folder.name, fan_out=3)
        return stale

    @rule(log=stale)
    def append_stale(self, log: OutcomeLog) -> None:
        with pytest.raises(JobConflict, match="another driver took over"):
            log.append(some("stale"), {"ok": -1})

    @rule(target=stale, step=st.integers(0, 5))
    def fail_while_appending(self, step: int) -> OutcomeLog:
        rows = self._new(1)
        rename, left = os.replace, iter([None] * step)

        def replace_or_fail(*paths: str) -> None:
            if next(left, self) is self:
                raise OSError("unplugged")
            rename(*paths)

        try:
            with mock.patch("os.replace", replace_or_fail):
                self.log.append(some(*rows), {"ok": len(self.model) + 1})
            self.model += rows
        except StoreError:
            with pytest.raises(StoreError, match="unplugged"):
                self.log.append(some("again"), {})
            self.log.begin()
        return self._take_over()

    @rule(target=readers, after=st.integers(0, 40))
    def start_reading(self, after: int) -> tuple[int, Iterator[pa.Table]]:
        after = min(after, len(self.model))
        reader = OutcomeLog(self.log._folder).tables(after)
        table = next(reader, None)  # it has chosen its segments
        names = [] if table is None else table["custom_id"].to_pylist()
        assert names == self.model[after : after + len(names)]
        return after + len(names), reader

    @rule(reading=consumes(readers))
    def read_on(self, reading: tuple[int, Iterator[pa.Table]]) -> None:
        after, reader = reading
        names = [name for table in reader for name in table["custom_id"].to_pylist()]
        assert names == self.model[after : after + len(names)]

    @invariant()
    def all_is_there_in_order(self) -> None:
        if self.next:
            fresh = OutcomeLog(self.log._folder)
            assert ids(fresh) == self.model
            middle = len(self.model) // 2
            assert ids(fresh, middle) == self.model[middle:]
            assert (fresh.rows, fresh.report) == (len(self.model), {"ok": len(self.model)} if fresh.report else {})
            levels = [segment.level for segment in fresh._load().segments]
            assert levels == sorted(levels, reverse=True)


TestLog = Log.TestCase
TestLog.settings = settings(max_examples=25, stateful_step_count=25, deadline=None)
