"""One history: drivers that run the same part, one after another and at once, and a reader; what they say is checked.

Knows what a log promises. Does not know what lies underneath (see `backends.py`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field

from benchmarks.store_model.schedule import Actor, Killed, Schedule
from serve_app.driver.store.log import OutcomeLog, id_keys
from serve_app.errors import JobConflict, ServeAppError, StoreError
from serve_app.schema import Outcome
from serve_app.storage.filesystem import Folder

ROWS, FAN_OUT = 6, 2
# How often a driver tries a commit again before it gives up.
TRIES = 3
HASH = "0" * 32


@dataclass
class History:
    """What came of it. `lost`: rows whose commit had returned, and which a reader did not see then or later."""

    seed: int
    lost: int = 0
    duplicated: int = 0
    unfinished: int = 0
    broken: str = ""
    counts: Counter[str] = field(default_factory=Counter)
    log: list[str] = field(default_factory=list)

    @property
    def good(self) -> bool:
        return not (self.lost or self.duplicated or self.unfinished or self.broken)


def run(folder: Folder, seed: int) -> History:
    """Two drivers and a reader at once, and then as many drivers as it takes, the last one without faults."""
    if folder.find("manifest.json") is not None:
        raise ValueError(f"{folder.url} has a part already")
    schedule = Schedule(seed, faults=seed % 4 != 0)
    history = History(seed, counts=schedule.counts, log=schedule.log)
    model = _Model(folder, history)
    drivers = [Actor(schedule, name, model.driver(name), faults=True) for name in ("A", "B")]
    reader = Actor(schedule, "reader", model.reader, faults=False)
    schedule.run(*drivers, reader)
    for name in ("C", "D"):
        schedule.run(last := Actor(schedule, name, model.driver(name), faults=name == "C"))
    schedule.deliver_all()
    for actor in (*drivers, reader, last):
        if actor.error is not None and not isinstance(actor.error, Killed | ServeAppError):
            history.broken = f"{actor.name}: {actor.error!r}"
    if last.error is not None:
        history.unfinished += 1
        history.broken = history.broken or f"{last.name}: {last.error!r}"
    model.check("the end", model.names)
    return history


class _Model:
    def __init__(self, folder: Folder, history: History) -> None:
        self.names = [f"row-{i}" for i in range(ROWS)]
        self._folder = folder
        self._history = history
        self._acknowledged: list[str] = []

    def _log(self) -> OutcomeLog:
        return OutcomeLog(self._folder, fan_out=FAN_OUT)

    def driver(self, name: str) -> Driver:
        return Driver(self._log(), name, self.names, self._acknowledged)

    def reader(self) -> None:
        for _ in range(3):
            self.check("a reader", list(self._acknowledged))

    def check(self, who: str, wanted: Sequence[str]) -> None:
        """Every row that is `wanted` must be there, and each once."""
        acknowledged = set(self._acknowledged)
        try:
            found = Counter(outcome.custom_id for outcome in self._log().outcomes())
        except StoreError as error:
            self._history.lost += len(acknowledged) or 1
            self._history.broken = self._history.broken or f"{who}: {error}"
            return
        missing = [name for name in wanted if name not in found]
        self._history.lost += len([name for name in missing if name in acknowledged])
        self._history.duplicated += sum(found.values()) - len(found)
        if missing:
            self._history.broken = self._history.broken or f"{who}: {', '.join(missing)} not there"


class Driver:
    """Runs the part as `PartRun` does: reads what is committed, and commits the rest."""

    def __init__(self, log: OutcomeLog, name: str, names: Sequence[str], acknowledged: list[str]) -> None:
        self._log = log
        self._name = name
        self._names = names
        self._acknowledged = acknowledged
        self._unsure = False

    def __call__(self) -> None:
        self._log.begin()
        found = self._log.committed().lookup(id_keys(self._names))
        todo = [name for name, content in zip(self._names, found, strict=True) if content is None]
        size = 1 + len(todo) % 2
        for start in range(0, len(todo), size):
            self._commit(todo[start : start + size])

    def _commit(self, names: Sequence[str]) -> None:
        for _ in range(TRIES):
            with suppress(StoreError):
                # As `PartRun._commit`: after an error it is not known whether the commit has reached the store.
                if not (self._unsure and self._log.begin_again()):
                    self._unsure = True
                    self._log.append([_outcome(name, self._name) for name in names], {})
                self._unsure = False
                self._acknowledged += names
                return
        raise JobConflict("the store is away")


def _outcome(name: str, replica: str) -> Outcome:
    return Outcome(name, HASH, "ok", {"text": name}, None, 1, replica, "m", "v", True, 1, 0, 1, 1.0, "2026-01-01")
