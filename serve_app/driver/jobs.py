"""Jobs: from a population and a request to committed outcomes and a status that can be watched."""

from __future__ import annotations

import asyncio
import contextvars
import logging
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import aclosing
from datetime import UTC, datetime
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from serve_app.driver.dispatch import Dispatcher, DispatchSettings, ReplicaPool, RowResult
from serve_app.driver.plan import Plan, make_plan
from serve_app.driver.render import Renderer
from serve_app.driver.store import JobStore, Store
from serve_app.errors import BadSettings, JobConflict, ServeAppError
from serve_app.schema import Outcome, ReplicaInfo, Request, Row, Sampling, content_hash
from serve_app.settings import DriverSettings

logger = logging.getLogger(__name__)

State = Literal["queued", "running", "interrupted", "completed", "completed_with_failures", "cancelled", "failed"]
FINISHED: tuple[State, ...] = ("completed", "completed_with_failures")


class RowSpec(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)
    custom_id: str = Field(min_length=1)
    messages: tuple[dict[str, str], ...] = Field(min_length=1)


class JobSpec(BaseModel):
    """Body of `POST /v1/populations`. With `labels` each row is scored, without it text is generated."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    rows: tuple[RowSpec, ...] = Field(min_length=1)
    workload: str = Field("prompts", min_length=1, description="name and version, part of each row's identity")
    labels: tuple[str, ...] = ()
    max_tokens: int = Field(16, ge=1)
    temperature: float = Field(0.0, ge=0)
    top_p: float = Field(1.0, gt=0, le=1)
    seed: int | None = None
    stop: tuple[str, ...] = ()
    structured: dict[str, Any] | None = None
    metadata: dict[str, Any] = Field(default_factory=dict, description="the caller's own, given back as it is")
    job_id: str | None = Field(None, description="default: made from workload and time")


class JobStatus(BaseModel):
    """What `GET /v1/populations/{id}` answers. Counts are of committed rows; figures of the present run."""

    id: str
    object: str = "population"
    state: State
    message: str = ""
    workload: str = ""
    model: str = ""
    folder: str = ""
    metadata: dict[str, Any] = {}
    simulated: bool = False
    total: int = 0
    ok: int = 0
    invalid: int = 0
    failed: int = 0
    replicas_available: int = 0
    replicas_chosen: int = 0
    rows_per_replica: int = 0
    tensor_parallel_size: int = 0
    rows_by_replica: dict[str, int] = {}
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    rows_per_s: float = 0.0
    eta_s: float | None = None
    run_s: float = 0.0

    @property
    def done(self) -> int:
        """Committed rows."""
        return self.ok + self.invalid + self.failed


class Jobs:
    """All jobs of a driver; they run one after another, in the order in which they came."""

    def __init__(self, settings: DriverSettings, pool: ReplicaPool) -> None:
        self._settings = settings
        self._pool = pool
        self._store = Store(settings.store)
        self._turn = asyncio.Lock()
        self._runs: dict[str, _Run] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}

    def submit(self, spec: JobSpec) -> str:
        """Write the job down and queue it; returns its id.

        Raises BadSettings for a `custom_id` given twice, JobConflict for a job id in use, StoreError.
        """
        (name, times), *_ = Counter(row.custom_id for row in spec.rows).most_common(1)
        if times > 1:
            raise BadSettings(f"rows: custom_id {name!r} is given {times} times; results are found by it")
        job_id = spec.job_id or f"{spec.workload.split('/')[0]}-{datetime.now(UTC):%Y%m%d-%H%M%S-%f}"[:60].rstrip("-")
        if (self._store.root / job_id).exists():
            raise JobConflict(f"job '{job_id}' exists already: give another id, or resume it")
        rows = [Row(row.custom_id, row.messages) for row in spec.rows]
        job = self._store.create(job_id, spec.model_dump(exclude={"rows"}), rows)
        self._start(job_id, job)
        return job_id

    def resume(self, job_id: str) -> None:
        """Run the rows that have no committed outcome. A running or finished job is left as it is."""
        job = self._store.open(job_id)
        if job_id not in self._tasks and job.manifest()["state"] not in FINISHED:
            self._start(job_id, job)

    async def cancel(self, job_id: str) -> None:
        """Stop a job; what it committed stays. Raises JobNotFound, or JobConflict when it is not running."""
        self._store.open(job_id)
        task = self._tasks.get(job_id)
        if task is None:
            raise JobConflict(f"job '{job_id}' is not running")
        task.cancel()
        await asyncio.wait([task])

    def list(self) -> list[JobStatus]:
        """Every job in the store, newest first."""
        return [self.status(job_id) for job_id in self._store.jobs()]

    def status(self, job_id: str) -> JobStatus:
        """The job's state now. Raises JobNotFound."""
        if run := self._runs.get(job_id):
            return run.status
        job = self._store.open(job_id)
        manifest, spec = job.manifest(), job.spec()
        # Written as running, and nobody runs it: the driver that did is gone.
        state = "interrupted" if manifest["state"] in ("queued", "running") else manifest["state"]
        known = {"id": job_id, "state": state, "message": manifest["message"], "metadata": spec["metadata"]}
        return JobStatus(**{**manifest["report"], **known})

    def job(self, job_id: str) -> JobStore:
        """The job's files. Raises JobNotFound."""
        return self._store.open(job_id)

    def _start(self, job_id: str, job: JobStore) -> None:
        run = _Run(job_id, job, self._settings, self._pool)
        self._runs[job_id] = run
        # In a context of its own: one made in an HTTP request would give all calls of the job that request's id,
        # and Serve's router tells calls apart by it (seen: calls never routed, router spinning).
        task = asyncio.create_task(self._in_turn(run), context=contextvars.Context())
        self._tasks[job_id] = task
        task.add_done_callback(lambda _: (self._tasks.pop(job_id, None), self._runs.pop(job_id, None)))

    async def _in_turn(self, run: _Run) -> None:
        try:
            async with self._turn:
                await run.execute()
        except asyncio.CancelledError:
            run.end("cancelled", "cancelled by request")
        except ServeAppError as error:
            run.end("failed", str(error))
        except Exception as error:  # a defect of ours must not leave a job that looks alive
            logger.exception("job %s failed", run.status.id)
            run.end("failed", f"{type(error).__name__}: {error}")


class _Run:
    """One run of a job over the rows that have no outcome yet."""

    def __init__(self, job_id: str, job: JobStore, settings: DriverSettings, pool: ReplicaPool) -> None:
        self._job = job
        self._settings = settings
        self._pool = pool
        self._request: Request | None = None
        self._pending: list[Outcome] = []
        self._started = time.monotonic()
        self._last_commit = self._started
        self._done_now = 0
        self.status = JobStatus(
            id=job_id,
            state="queued",
            message="waiting for its turn",
            folder=str(job.folder),
            metadata=job.spec()["metadata"],
        )

    async def execute(self) -> None:
        """Load, plan, render, dispatch and commit; then end the job."""
        spec = JobSpec.model_construct(**self._job.spec())
        rows, committed = await asyncio.to_thread(lambda: (self._job.rows(), list(self._job.outcomes())))
        self._count(committed)
        self._update(state="running", total=len(rows), workload=spec.workload, message="waiting for a replica")
        self._job.set_state("running")
        done = {outcome.custom_id for outcome in committed}
        rows = [row for row in rows if row.custom_id not in done]
        if rows:
            await self._compute(spec, rows)
        self.end("completed_with_failures" if self.status.failed or self.status.invalid else "completed", "")

    async def _compute(self, spec: JobSpec, rows: Sequence[Row]) -> None:
        replica = await self._first_replica()
        self._update(
            model=replica.engine.model,
            simulated=replica.engine.simulated,
            tensor_parallel_size=replica.engine.tensor_parallel_size,
            message="tokenising",
        )
        request = Request(replica.engine.model, spec.workload, tuple(spec.labels), _sampling(spec))
        prompts, label_ids = await asyncio.to_thread(self._render, replica.engine.tokenizer, rows, request.labels)
        hashes = [content_hash(request, row) for row in rows]
        self._started = time.monotonic()
        self._update(message="")
        dispatcher = Dispatcher(
            self._pool,
            DispatchSettings(
                chunk_rows=self._settings.chunk_rows,
                chunks_in_flight=self._settings.chunks_in_flight,
                max_attempts=self._settings.max_attempts,
                replica_wait_s=self._settings.replica_wait_s,
            ),
            choose=lambda available: self._plan(len(rows), available).chosen,
            on_replicas=lambda available, used: self._on_replicas(len(rows), available, used),
        )
        results = dispatcher.run(
            prompts, label_ids=label_ids, sampling=request.sampling, priority=self._settings.priority
        )
        self._last_commit = time.monotonic()
        try:
            async with aclosing(results):  # however we leave, what runs is cancelled before the last commit
                async for some in results:
                    self._pending += [_outcome(rows[r.index], hashes[r.index], r, request) for r in some]
                    if self._commit_is_due():
                        await self._commit()
        finally:
            await self._commit()

    def _commit_is_due(self) -> bool:
        waited_s = time.monotonic() - self._last_commit
        return len(self._pending) >= self._settings.commit_rows or waited_s >= self._settings.commit_seconds

    def _render(
        self, source: str, rows: Sequence[Row], labels: tuple[str, ...]
    ) -> tuple[list[tuple[int, ...]], tuple[int, ...]]:
        renderer = Renderer(source)
        return renderer.prompts(rows), renderer.label_ids(labels)

    async def _first_replica(self) -> ReplicaInfo:
        deadline = time.monotonic() + self._settings.replica_wait_s
        while time.monotonic() < deadline:
            if replicas := await self._pool.replicas():
                return replicas[0]
            if reason := await self._pool.failure():
                raise ServeAppError(f"the replicas cannot start: {reason}")
            await asyncio.sleep(1.0)
        raise ServeAppError(f"no replica was ready within {self._settings.replica_wait_s:g} s")

    def _plan(self, rows: int, available: int) -> Plan:
        low, high = self._settings.min_rows_per_replica, self._settings.max_rows_per_replica
        return make_plan(rows, available, min_rows=low, max_rows=high)

    def _on_replicas(self, rows: int, available: int, used: int) -> None:
        plan = self._plan(rows, available)
        self._update(
            replicas_available=available,
            # The most that worked at once: a replica that is being replaced was chosen all the same.
            replicas_chosen=max(used, self.status.replicas_chosen),
            rows_per_replica=self.status.rows_per_replica or plan.rows_per_replica,
            message="" if used else "waiting for a replica",
        )

    async def _commit(self) -> None:
        self._last_commit = time.monotonic()
        outcomes, self._pending = self._pending, []
        if not outcomes:
            return
        writing = asyncio.create_task(asyncio.to_thread(self._job.commit, outcomes))
        try:
            await asyncio.shield(writing)
        finally:
            # A cancel must not leave a writer behind that another write of the manifest could cross.
            await asyncio.wait([writing])
            if writing.exception() is None:
                self._count(outcomes)

    def _count(self, outcomes: Sequence[Outcome]) -> None:
        status = self.status
        by_status = Counter(outcome.status for outcome in outcomes)
        by_replica = Counter(outcome.replica for outcome in outcomes if outcome.replica)
        self._update(
            ok=status.ok + by_status["ok"],
            invalid=status.invalid + by_status["invalid"],
            failed=status.failed + by_status["failed"],
            rows_by_replica=dict(Counter(status.rows_by_replica) + by_replica),
            prompt_tokens=status.prompt_tokens + sum(o.prompt_tokens for o in outcomes),
            cached_tokens=status.cached_tokens + sum(o.cached_tokens for o in outcomes),
            completion_tokens=status.completion_tokens + sum(o.completion_tokens for o in outcomes),
        )
        if self.status.state == "running":
            self._done_now += len(outcomes)
            run_s = time.monotonic() - self._started
            rate = self._done_now / run_s
            left = self.status.total - self.status.done
            self._update(rows_per_s=rate, run_s=run_s, eta_s=left / rate)

    def end(self, state: State, message: str) -> None:
        """Record how the job ended, in the store and in the status."""
        self._update(state=state, message=message, eta_s=None)
        self._job.set_state(state, message, self.status.model_dump())

    def _update(self, **values: Any) -> None:
        self.status = self.status.model_copy(update=values)


def _sampling(spec: JobSpec) -> Sampling:
    return Sampling(
        max_tokens=spec.max_tokens,
        temperature=spec.temperature,
        top_p=spec.top_p,
        seed=spec.seed,
        stop=tuple(spec.stop),
        structured=spec.structured,
    )


def _outcome(row: Row, digest: str, result: RowResult, request: Request) -> Outcome:
    completion, replica = result.completion, result.replica
    value: dict[str, Any] | None = None
    if completion.status == "ok" and request.labels:
        logprobs = dict(zip(request.labels, completion.label_logprobs, strict=True))
        value = {"logprobs": logprobs}
    elif completion.status == "ok":
        value = {"text": completion.text, "finish_reason": completion.finish_reason}
    return Outcome(
        custom_id=row.custom_id,
        content_hash=digest,
        status=completion.status,
        value=value,
        error=completion.error,
        attempts=result.attempts,
        replica=replica.replica_id if replica else None,
        model=request.model,
        engine_version=replica.engine.engine_version if replica else None,
        simulated=bool(replica and replica.engine.simulated),
        prompt_tokens=completion.prompt_tokens,
        cached_tokens=completion.cached_tokens,
        completion_tokens=completion.completion_tokens,
        latency_ms=round(completion.latency_ms, 3),
        finished_at=datetime.now(UTC).isoformat(timespec="milliseconds"),
    )
