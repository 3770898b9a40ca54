"""One population with one fault in its middle: what was lost, and how long it took until all was well again."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import psutil

from benchmarks.chaos.exactly_once import Logprobs, compare, count_committed, logprobs_of, read_results
from benchmarks.chaos_real.faults import Fault, Place, Undo
from benchmarks.chaos_real.online import Online
from benchmarks.chaos_real.stack import REPLICAS, Stack
from serve_app.errors import ServeAppError
from serve_app.schema import Row
from serve_app.spec import JobSpec, JobState

LABELS = (" Yes", " No")
# From the fault to the job's end with all replicas back.
TIMEOUT_S = 420.0
SETTLE_S = 10.0
POLL_S, LOOK_S = 0.1, 0.5


@dataclass
class Record:
    """One run. `recovery_s` is the longest time without a committed row from the fault on; other times are from the
    fault to all replicas at work and to the job's end."""

    fault: str
    ended: bool = False
    rows: int = 0
    lost: int = 0
    duplicated: int = 0
    defaulted: int = 0
    orphans: list[str] = field(default_factory=list)
    recovery_s: float | None = None
    restored_s: float | None = None
    job_s: float | None = None
    online_requests: int = 0
    online_errors: dict[str, int] = field(default_factory=dict)
    online_gap_s: float = 0.0
    message: str = ""


@dataclass(frozen=True)
class Population:
    """Rows, and the answers that they had without a fault, `tolerance` apart at most."""

    rows: Sequence[Row]
    expected: Mapping[str, Logprobs | None]
    tolerance: float = 0.0

    @classmethod
    def of(cls, size: int) -> Population:
        rows = [Row(f"row-{i}", prompt=f"Can {i * 7919 % 100003} be divided by seven? Answer yes or no:")
                for i in range(size)]  # fmt: skip
        return cls(rows, {row.custom_id: None for row in rows})


class Commits:
    """Context manager: watches how many rows the store's files name, in a thread."""

    def __init__(self, filesystem: Any, job: str) -> None:
        self._where = filesystem, job
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self.seen: list[tuple[float, int]] = [(time.monotonic(), 0)]

    def __enter__(self) -> Commits:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join()

    @property
    def rows(self) -> int:
        return self.seen[-1][1]

    def _watch(self) -> None:
        while not self._end.wait(POLL_S):
            with suppress(OSError, ValueError):
                if (rows := count_committed(*self._where)) > self.rows:
                    self.seen.append((time.monotonic(), rows))

    def recovery_s(self, began: float) -> float | None:
        """The longest time from then on without a commit before the last; None if there was none."""
        times = [began, *(at for at, _ in self.seen if at > began)]
        return max((later - earlier for earlier, later in pairwise(times)), default=None)


def undisturbed(stack: Stack, place: Place, population: Population, kind: str) -> Population:
    """The population with its answers. Raises SystemExit if some are missing, or all are the same."""
    job = stack.client.submit(_spec(population, "undisturbed"))
    status = stack.client.wait(job)
    found = read_results(*place.stores.open(kind, job))
    faults = compare(found, population.expected, LABELS)
    answers = {row["custom_id"]: logprobs_of(row) for row in found}
    if any(faults.values()) or len({tuple(answer.values()) for answer in answers.values()}) < len(answers) / 4:
        raise SystemExit(f"without any fault: {dict(faults)}, {status.state} {status.message}")
    stack.client.delete(job)
    return Population(population.rows, answers, tolerance=_tolerance(stack))


def _tolerance(stack: Stack) -> float:
    """How far log-probabilities of one row may be apart in two runs, by the type in which they are computed."""
    engine = stack.client.replicas()[0].engine
    return 1e-9 if engine.simulated else {"float32": 0.002}.get(engine.dtype, 0.25)


def _spec(population: Population, job_id: str) -> JobSpec:
    return JobSpec.of(population.rows, workload="chaos/v1", labels=list(LABELS), job_id=job_id)


def run(place: Place, name: str, fault: Fault, population: Population, job_id: str, online: Online) -> Record:
    """Raises nothing: what went wrong is in the record."""
    record = Record(name, rows=len(population.rows))
    filesystem, path = place.stores.open(fault.store, job_id)
    with Commits(filesystem, path) as commits:
        try:
            _disturb(place, fault, population, job_id, online, commits, record)
        except Exception as error:
            record.ended = False
            record.message = f"{type(error).__name__}: {error}"[:300]
    answers = online.take()
    record.online_requests, record.online_gap_s = answers.requests, round(answers.longest_gap_s, 1)
    record.online_errors = dict(answers.errors)
    with suppress(OSError):
        counts = compare(read_results(filesystem, path), population.expected, LABELS, tolerance=population.tolerance)
        record.lost, record.duplicated, record.defaulted = (counts[k] for k in ("lost", "duplicated", "defaulted"))
        record.orphans = _orphans(place.stack)
        if record.ended:
            with suppress(ServeAppError):
                place.stack.client.delete(job_id)
        return record
    record.lost = len(population.rows)
    return record


def _disturb(
    place: Place, fault: Fault, population: Population, job_id: str, online: Online, commits: Commits, record: Record
) -> None:
    stack, rows = place.stack, len(population.rows)
    stack.client.submit(_spec(population, job_id))
    moment, deadline = rows * place.rng.uniform(0.1, 0.4), time.monotonic() + TIMEOUT_S
    while commits.rows < moment:
        if time.monotonic() > deadline:
            raise TimeoutError(f"{commits.rows} of {rows} rows were committed before any fault")
        time.sleep(POLL_S)
    online.take()
    stack.processes.orphans()  # knows the shared memory of those who may end now
    undo, began = fault.begin(place), time.monotonic()
    undone = _later(fault.lasts_s, undo)  # in time, whoever is asked below and does not answer
    state, whole_since = JobState.RUNNING, None
    while not (undone.done() and whole_since is not None and not state.active):
        now = time.monotonic()
        with suppress(ServeAppError):
            status = stack.client.status(job_id)
            if state.active and not status.state.active:
                record.job_s = round(now - began, 1)
            state = status.state
        whole_since = (whole_since or now) if whole(stack) else None
        if now - began > TIMEOUT_S:
            raise TimeoutError(f"{commits.rows} of {rows} rows, job {state}, {'all' if whole_since else 'not all'} "
                               f"replicas at work after {TIMEOUT_S:g} s")  # fmt: skip
        time.sleep(LOOK_S)
    undone.result()
    recovery_s = commits.recovery_s(began)
    record.recovery_s = None if recovery_s is None else round(recovery_s, 1)
    record.restored_s = round(max(0.0, whole_since - began), 1)
    record.ended = state is JobState.COMPLETED
    record.message = "" if record.ended else f"the job is {state}: {status.message}"


def _later(seconds: float, undo: Undo) -> Future[None]:
    """Done once `undo` was called, in so many seconds, and failed if that failed."""
    done: Future[None] = Future()

    def call() -> None:
        try:
            undo()
        except BaseException as error:
            done.set_exception(error)
        else:
            done.set_result(None)

    threading.Timer(seconds, call).start()
    return done


def whole(stack: Stack) -> bool:
    """Whether all replicas can be seen by the driver, and live with their workers."""
    try:
        replicas = stack.client.replicas()
    except ServeAppError:
        return False
    pids = [pid for one in replicas for pid in (one.pid, *one.engine.worker_pids)]
    return len(replicas) == REPLICAS and all(map(_works, pids))


def _works(pid: int) -> bool:
    with suppress(psutil.Error):
        return psutil.Process(pid).status() not in (psutil.STATUS_ZOMBIE, psutil.STATUS_STOPPED)
    return False


def _orphans(stack: Stack) -> list[str]:
    """What is still left without its owner some time after all was well."""
    deadline = time.monotonic() + SETTLE_S
    while (left := stack.processes.orphans()) and time.monotonic() < deadline:
        time.sleep(LOOK_S)
    return left
