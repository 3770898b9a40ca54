"""A job from plan to end: count the population, cut it in parts, have them run, say how it ended."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from contextlib import AsyncExitStack
from functools import partial
from itertools import pairwise, starmap
from typing import Any, Protocol, TypeVar

import msgspec

from serve_app.dispatch.dispatcher import Dispatcher
from serve_app.dispatch.pool import DispatchSettings, ReplicaPool
from serve_app.dispatch.provider.pool import ProviderPool
from serve_app.driver.jobs.pace import Pace
from serve_app.driver.jobs.part import PartRun, Span
from serve_app.driver.jobs.plan import Plan, make_plan
from serve_app.driver.jobs.reuse import Reuse
from serve_app.driver.jobs.tally import Tally, total
from serve_app.driver.sources.files import fingerprint
from serve_app.driver.sources.source import Source, check_ids, check_size, open_source
from serve_app.driver.store.retries import while_store_is_away
from serve_app.driver.store.store import JobStore, Store
from serve_app.driver.threads import finish_in_thread
from serve_app.errors import JobConflict, JobNotFound, StoreError, TakenOver
from serve_app.settings import DispatchSizes, DriverSettings
from serve_app.spec import JobSpec, JobState, JobStatus

logger = logging.getLogger(__name__)
T = TypeVar("T")

# How often a run looks whether its job was ended elsewhere, as by a cancel that another driver got.
WATCH_S = 5.0

# Only a job in these states has an end to come; the first one written counts.
ACTIVE = [state for state in JobState if state.active]


class Part(Protocol):
    """A part that runs, here (`PartRun`) or in a process of its own (`runner.RemotePart`)."""

    tally: Tally
    message: str

    async def execute(self) -> None:
        """Return when every row of the part has a committed outcome."""


# (job id, number of the part, number of all parts, rows) -> the part
MakePart = Callable[[str, int, int, Span], Part]


class JobRun:
    """One run of a job. `dispatcher` is the driver's, shared by all jobs; `remote` runs parts elsewhere."""

    def __init__(
        self, job: JobStore, store: Store, settings: DriverSettings, dispatcher: Dispatcher, remote: MakePart | None
    ) -> None:
        self.job = job
        self.spec = JobSpec.model_validate(job.spec())
        self._store = store
        self._settings = settings
        self._dispatcher = dispatcher
        self._remote = remote
        self._parts: list[Part] = []
        self._tallies: list[Tally] = []
        self._before = status_of(job)
        self._pace = Pace(self._before.done)
        self._rows = self._before.total
        self._message = "waiting for its turn"
        self._state = JobState.QUEUED
        self._held = False

    def hold(self, message: str) -> None:
        """Say why it cannot begin yet; until then it wants no replicas."""
        self._held, self._message = True, message

    async def execute(self) -> None:
        """Plan and run the job to its end. Raises what ends it early, without writing that down."""
        self._state, self._message, self._held = JobState.RUNNING, "counting the rows", False
        spans = await self._read(self._plan)
        async with AsyncExitStack() as stack:
            dispatcher = self._dispatcher
            if self.spec.provider is not None:
                pool = await stack.enter_async_context(
                    ProviderPool(
                        self.spec.provider,
                        labels=self.spec.labels,
                        sampling=self.spec.sampling,
                        reach=self._settings.provider_reach,
                    )
                )
                own = Dispatcher(pool, self._provider_dispatch(), self._dispatcher.memory)
                dispatcher = await stack.enter_async_context(own)
            reuse = None
            if self.spec.reuse:
                self._message = "looking for answers of other jobs"
                reuse = await self._read(lambda: Reuse(self._store, self.job.job_id, self.spec.workload))
            for number, span in enumerate(spans):
                self._parts.append(self._part(number, span, len(spans), dispatcher, reuse))
            self._message = ""
            stack.enter_context(dispatcher.watching())
            async with asyncio.TaskGroup() as tasks:
                watching = tasks.create_task(self._watch())
                async with asyncio.TaskGroup() as parts:
                    for part in self._parts:
                        parts.create_task(part.execute())
                watching.cancel()
        await self._read(self._check_source)
        tally = total(part.tally for part in self._parts)
        unanswered = tally.failed or tally.invalid
        await self.end(JobState.COMPLETED_WITH_FAILURES if unanswered else JobState.COMPLETED, "")

    async def _read(self, call: Callable[[], T]) -> T:
        """What `call` gives in a thread, tried again while the store is away for a moment."""
        return await while_store_is_away(lambda: finish_in_thread(call), patience_s=lambda: self._settings.store_wait_s)

    async def _watch(self) -> None:
        """Raise TakenOver once another driver, or a request to it, has ended or deleted the job."""
        while True:
            await asyncio.sleep(WATCH_S)
            try:
                state = (await asyncio.to_thread(self.job.manifest))["state"]
            except JobNotFound as error:
                raise TakenOver(str(error)) from error
            except StoreError:  # whoever has to write finds out
                continue
            if not state.active:
                raise TakenOver(f"it is {state}, by another driver or request")

    def _check_source(self) -> None:
        if self.job.manifest()["report"].get("fingerprint") != fingerprint(self.spec, self._settings.source_reach):
            raise JobConflict(f"source: {self.spec.source} changed since the job began: submit a new job")

    def _plan(self) -> list[Span]:
        """The parts' rows. A job keeps the parts that it was first cut into."""
        self.job.update(expected=ACTIVE, state=JobState.RUNNING, message="")
        manifest = self.job.manifest()
        if manifest.get("engine") and not self.job.answered():
            self.job.update(engine=None)  # whatever is served now may answer it
        if manifest["parts"]:
            self._check_source()
            spans = [Span(start, stop) for start, stop in manifest["parts"]]
        else:
            now = fingerprint(self.spec, self._settings.source_reach)
            source = self._source()
            rows = source.count()
            check_size(rows, self._settings.max_rows)
            check_ids(source)
            spans = cut(rows, self._settings.rows_per_runner, self._settings.max_runners if self._remote else 1)
            self.job.update(parts=[list(span) for span in spans], report={"fingerprint": now, "total": rows})
        self._rows = spans[-1].stop
        for number in range(len(spans)):
            report = self.job.part(number).report
            self._tallies.append(msgspec.convert(report, Tally) if report else Tally())
        return spans

    def _source(self) -> Source:
        return open_source(self.spec, folder_url=self.job.folder, reach=self._settings.source_reach)

    def _part(self, number: int, span: Span, parts: int, dispatcher: Dispatcher, reuse: Reuse | None) -> Part:
        if self._remote is not None and parts > 1 and self.spec.provider is None:
            part = self._remote(self.job.job_id, number, parts, span)
            part.tally = self._tallies[number]
            return part
        return PartRun(
            self.spec,
            self._source(),
            self.job.part(number),
            dispatcher,
            self._settings,
            span=span,
            limit=lambda available: self.plan(available).chosen,
            pin=self.job.pin,
            reuse=reuse,
            tally=self._tallies[number],
        )

    def _provider_dispatch(self) -> DispatchSettings:
        """One window for the one provider. It tries each request several times by itself."""
        provider = self.spec.provider
        rows = provider.batch_rows if provider else 1
        window = max(rows, provider.concurrency) if provider else 1
        sizes = {"chunk_rows": rows, "min_chunk_rows": rows, "window_rows": window, "max_window_rows": window}
        return dispatch_settings(self._settings, **sizes, max_attempts=min(3, self._settings.max_attempts))

    def rows_left(self) -> int:
        """Rows that our replicas are wanted for; at least one, as long as the population was not counted."""
        if self.spec.provider is not None or self._held:
            return 0
        return max(1, self._rows - sum(part.tally.done for part in self._parts))

    def plan(self, available: int) -> Plan:
        """How many replicas the job wants and gets."""
        low, high = self._settings.min_rows_per_replica, self._settings.max_rows_per_replica
        return make_plan(max(1, self._rows), available, min_rows=low, max_rows=high)

    async def end(self, state: JobState, message: str) -> None:
        """Record how the job ended, with its last figures: see `write_end`. Until then it counts as running."""
        figures = self.status().model_dump(exclude={"id", "state", "message", "eta_s"})
        self._message = f"ending as {state}{': ' if message else ''}{message}"
        if await write_end(self.job, state, message, figures):
            self._state, self._message = state, message

    def status(self) -> JobStatus:
        """The job as it is now."""
        if not self._parts:
            return self._before.model_copy(update={"state": self._state, "message": self._message})
        tally = total(part.tally for part in self._parts)
        waiting = next((part.message for part in self._parts if part.message), "")
        workers = 1 if self.spec.provider else len(self._dispatcher.workers)
        if self._state is JobState.RUNNING and self.spec.provider is None:
            note = self._dispatcher.note
            if not workers:
                waiting = f"waiting for a replica{': ' if note else ''}{note}"
            waiting = waiting or note
        plan = self.plan(max(1, workers))
        chosen = max(self._before.replicas_chosen, len(tally.now_by_replica), min(plan.chosen, workers))
        now = sum(tally.now_by_replica.values())
        rate = now / tally.now_s if tally.now_s else self._before.rows_per_s
        self._pace.observe(tally.done)
        eta_s = self._pace.eta_s(self._rows - tally.done) if self._state is JobState.RUNNING else None
        return self._before.model_copy(
            update={
                **msgspec.structs.asdict(tally),
                "state": self._state,
                "message": self._message or waiting,
                "total": self._rows,
                "replicas_available": workers,
                "replicas_chosen": chosen,
                "replicas_wanted": plan.wanted,
                "rows_per_replica": plan.rows_per_replica,
                "rows_per_s": rate,
                "rows_per_s_by_replica": {name: n / tally.now_s for name, n in tally.now_by_replica.items()},
                "cached_share": tally.cached_tokens / tally.prompt_tokens if tally.prompt_tokens else 0.0,
                "eta_s": eta_s,
                "cost": self._cost(tally, chosen),
            }
        )

    def _cost(self, tally: Tally, replicas: int) -> float | None:
        return self.spec.price.cost(
            replica_s=0.0 if self.spec.provider else tally.run_s * replicas,
            prompt_tokens=tally.prompt_tokens,
            completion_tokens=tally.completion_tokens,
        )


async def write_end(job: JobStore, state: JobState, message: str, figures: dict[str, Any]) -> bool:
    """Record how the job ended, however long the store is away. False if it was ended, or deleted, by somebody else:
    that stays."""
    update = partial(job.update, expected=ACTIVE, state=state, message=message, report=figures)
    try:
        await while_store_is_away(lambda: finish_in_thread(update))
    except (JobConflict, JobNotFound) as error:
        logger.warning("%s; it would have ended here as %s", error, state)
        return False
    return True


def status_of(job: JobStore) -> JobStatus:
    """The status of a job that nobody runs, from what it left in the store."""
    manifest, spec = job.read()
    report: dict[str, Any] = {k: v for k, v in manifest["report"].items() if k in JobStatus.model_fields}
    reports = [log.report for log in job.parts()]
    tally = total(msgspec.convert(report, Tally) for report in reports if report)
    counts = {k: v for k, v in msgspec.structs.asdict(tally).items() if k in JobStatus.model_fields}
    known = {
        "id": job.job_id,
        "state": manifest["state"],
        "message": manifest["message"],
        "eta_s": None,
        "workload": spec["workload"],
        "metadata": spec["metadata"],
        "price": spec["price"],
        "folder": job.folder,
    }
    return JobStatus(**{**report, **counts, **known})


def cut(rows: int, rows_per_part: int, most: int) -> list[Span]:
    """`rows` rows in equal spans, as few as `rows_per_part` allows and at most `most`; one, if empty."""
    parts = max(1, min(most, -(-rows // rows_per_part)))
    bounds = [rows * i // parts for i in range(parts + 1)]
    return list(starmap(Span, pairwise(bounds)))


def dispatch_settings(settings: DriverSettings, **changed: int) -> DispatchSettings:
    """The dispatcher's share of the driver's settings."""
    return DispatchSettings(**{name: getattr(settings, name) for name in DispatchSizes.model_fields} | changed)


def make_dispatcher(pool: ReplicaPool, settings: DriverSettings) -> Dispatcher:
    """The dispatcher that all jobs of a driver share."""
    return Dispatcher(pool, dispatch_settings(settings))
