"""One run of a job: load, plan, render, dispatch, commit, and the status that can be watched meanwhile."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import aclosing
from datetime import UTC, datetime
from typing import Any

from serve_app.driver.dispatch import Dispatcher, DispatchSettings, ReplicaPool, RowResult
from serve_app.driver.plan import Plan, make_plan
from serve_app.driver.render import Renderer
from serve_app.driver.spec import JobSpec, JobStatus, State
from serve_app.driver.store import JobStore
from serve_app.errors import JobConflict, ServeAppError
from serve_app.schema import Completion, Outcome, ReplicaInfo, Request, Row, Sampling, content_hash
from serve_app.settings import DriverSettings

logger = logging.getLogger(__name__)

# What a resumed run takes over from the report of the run before it.
KEPT = (
    "model", "simulated", "tensor_parallel_size", "replicas_available", "replicas_chosen", "rows_per_replica",
    "run_s", "rows_per_s",
)  # fmt: skip


class Run:
    """One run of a job over the rows that have no outcome yet."""

    def __init__(self, job_id: str, job: JobStore, settings: DriverSettings, pool: ReplicaPool) -> None:
        self.job = job
        self._settings = settings
        self._pool = pool
        self._pending: list[Outcome] = []
        self._started = time.monotonic()
        self._run_before_s = 0.0
        self._writing: asyncio.Task[None] | None = None
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
        spec = JobSpec.model_construct(**self.job.spec())
        rows, committed = await asyncio.to_thread(lambda: (self.job.rows(), list(self.job.outcomes())))
        before = self.job.manifest()["report"]
        self._update(**{name: before[name] for name in KEPT if name in before})
        self._run_before_s = self.status.run_s
        self._count(committed)
        self._update(state="running", total=len(rows), workload=spec.workload, message="waiting for a replica")
        self.job.set_state("running")
        done = {outcome.custom_id: outcome for outcome in committed}
        if len(done) < len(rows):
            replica = await self._first_replica()
            request = Request(replica.engine.model, spec.workload, tuple(spec.labels), _sampling(spec))
            _check_identity(request, rows, done)
            await self._compute(request, replica, [row for row in rows if row.custom_id not in done])
        self.end("completed_with_failures" if self.status.failed or self.status.invalid else "completed", "")

    async def _compute(self, request: Request, replica: ReplicaInfo, rows: Sequence[Row]) -> None:
        self._update(
            model=replica.engine.model,
            simulated=replica.engine.simulated,
            tensor_parallel_size=replica.engine.tensor_parallel_size,
            message="tokenising",
        )
        rendered, label_ids = await asyncio.to_thread(_render, replica.engine.tokenizer, rows, request.labels)
        self._started = time.monotonic()
        self._update(message="")
        for row, prompt in zip(rows, rendered, strict=True):
            if isinstance(prompt, str):
                refused = Completion(status="invalid", error=prompt)
                self._pending.append(_outcome(row, RowResult(0, refused, None, 1), request))
        rows = [row for row, prompt in zip(rows, rendered, strict=True) if not isinstance(prompt, str)]
        prompts = [prompt for prompt in rendered if not isinstance(prompt, str)]
        dispatcher = Dispatcher(
            self._pool,
            DispatchSettings(
                chunk_rows=self._settings.chunk_rows,
                chunks_in_flight=self._settings.chunks_in_flight,
                max_attempts=self._settings.max_attempts,
                replica_wait_s=self._settings.replica_wait_s,
            ),
            choose=lambda available: self._plan(max(1, len(rows)), available).chosen,
            on_replicas=lambda available, used: self._on_replicas(len(rows), available, used),
        )
        results = dispatcher.run(
            prompts, label_ids=label_ids, sampling=request.sampling, priority=self._settings.priority
        )
        ticking = asyncio.create_task(self._commit_often())
        try:
            async with aclosing(results):  # however we leave, what runs is cancelled before the last commit
                async for some in results:
                    self._pending += [_outcome(rows[r.index], r, request) for r in some]
                    if len(self._pending) >= self._settings.commit_rows:
                        await self._commit()
                    if ticking.done():
                        await ticking  # a store that cannot be written ends the job
        finally:
            ticking.cancel()
            await self._commit()

    async def _commit_often(self) -> None:
        while True:
            await asyncio.sleep(self._settings.commit_seconds)
            await self._commit()

    async def _first_replica(self) -> ReplicaInfo:
        deadline = time.monotonic() + self._settings.replica_wait_s
        while time.monotonic() < deadline:
            try:
                if replicas := await self._pool.replicas():
                    return replicas[0]
            except Exception as error:  # it could not be found out
                logger.warning("cannot ask for replicas: %s", error)
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
        # A cancel must not leave a writer behind that another write of the manifest could cross: it goes on, and
        # whoever comes next waits for it.
        while self._pending or self._writing is not None:
            writing = self._writing = self._writing or asyncio.create_task(self._write())
            try:
                await asyncio.shield(writing)
            finally:
                if writing.done() and self._writing is writing:
                    self._writing = None

    async def _write(self) -> None:
        while self._pending:
            outcomes, self._pending = self._pending, []
            self._count(outcomes)
            await asyncio.to_thread(self.job.commit, outcomes, self.status.model_dump())

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
            self._update(rows_per_s=rate, run_s=self._run_before_s + run_s, eta_s=left / rate)

    def end(self, state: State, message: str) -> None:
        """Record how the job ended, in the store and in the status."""
        self._update(state=state, message=message, eta_s=None)
        self.job.set_state(state, message, self.status.model_dump())

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


def _render(
    source: str, rows: Sequence[Row], labels: tuple[str, ...]
) -> tuple[list[tuple[int, ...] | str], tuple[int, ...]]:
    renderer = Renderer(source)
    return renderer.prompts(rows), renderer.label_ids(labels)


def _check_identity(request: Request, rows: Sequence[Row], done: Mapping[str, Outcome]) -> None:
    """Raise JobConflict when committed outcomes are answers to something else than what would run now."""
    for row in rows:
        outcome = done.get(row.custom_id)
        if outcome is not None and outcome.content_hash != content_hash(request, row):
            raise JobConflict(
                f"row {row.custom_id!r} was answered by model '{outcome.model}' to another question than would run "
                f"now on '{request.model}': serve that model again, or submit a new job"
            )


def _outcome(row: Row, result: RowResult, request: Request) -> Outcome:
    completion, replica = result.completion, result.replica
    value: dict[str, Any] | None = None
    if completion.status == "ok" and request.labels:
        logprobs = dict(zip(request.labels, completion.label_logprobs, strict=True))
        value = {"logprobs": logprobs, "mass": math.fsum(map(math.exp, completion.label_logprobs))}
    elif completion.status == "ok":
        value = {"text": completion.text, "finish_reason": completion.finish_reason}
    return Outcome(
        custom_id=row.custom_id,
        content_hash=content_hash(request, row),
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
