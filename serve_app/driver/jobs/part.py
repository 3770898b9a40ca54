"""One run of one part of a job: read, render, dispatch and commit the rows that have no outcome yet.

Knows rows and outcomes. Does not know jobs or their states (see `job.py`). Runs in the driver or in a process of its
own (see `driver/runner.py`).
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from typing import NamedTuple, TypeVar

import msgspec

from serve_app.dispatch.dispatcher import Dispatcher
from serve_app.dispatch.memory import Holding
from serve_app.dispatch.render import NotRendered, Renderer, make_renderer
from serve_app.dispatch.rows import RenderedRow, RowResult
from serve_app.dispatch.stream import Stream
from serve_app.driver.jobs.commit import Committer
from serve_app.driver.jobs.reuse import Reuse
from serve_app.driver.jobs.tally import Tally
from serve_app.driver.sources.requests import value_and_error
from serve_app.driver.sources.source import Source
from serve_app.driver.store.idmap import IdMap
from serve_app.driver.store.log import OutcomeLog, id_keys
from serve_app.driver.store.retries import while_store_is_away
from serve_app.driver.threads import finish_in_thread
from serve_app.errors import BadSettings, JobConflict
from serve_app.schema import Chunk, Completion, Identity, Outcome, ReplicaInfo, Request, Row, RowKey
from serve_app.settings import DriverSettings
from serve_app.spec import JobSpec

T = TypeVar("T")

# How long a cancelled or failed run retries its last commit.
LAST_PATIENCE_S = 10.0
# Rows are read and rendered in blocks: first a small one, so that replicas begin at once, then large ones, so that
# shared prefixes meet.
FIRST_BLOCK, LARGEST_BLOCK, GROWTH = 256, 8192, 4
# A block of long rows, of images as text say, ends early: it is in memory a few times, in one job of several.
BLOCK_SHARE = 1 / 32


class Span(NamedTuple):
    """The rows [start, stop) of a population."""

    start: int
    stop: int


class Block(msgspec.Struct, frozen=True):
    """Rows ready for dispatch, and outcomes that need none (unreadable or refused rows, reused answers)."""

    rows: list[RenderedRow[RowKey]]
    known: list[Outcome]
    last: bool


class PartRun:
    """Runs the rows `span` of `source` on up to `limit(available)` replicas; `tally` has what earlier runs counted.

    `pin` is given the served model's name and identity and returns the identity that rows are to have: see
    `JobStore.pin`.
    """

    def __init__(
        self,
        spec: JobSpec,
        source: Source,
        log: OutcomeLog,
        dispatcher: Dispatcher,
        settings: DriverSettings,
        *,
        span: Span,
        limit: Callable[[int], int],
        pin: Callable[[str, str], str] = lambda model, identity: identity,
        reuse: Reuse | None = None,
        tally: Tally | None = None,
    ) -> None:
        self._spec = spec
        self._source = source
        self._log = log
        self._dispatcher = dispatcher
        self._settings = settings
        self._span = span
        self._limit = limit
        self._pin = pin
        self._engine = ""
        self._reuse = reuse
        self._committed: IdMap | None = None
        self._run_before_s = 0.0
        self._started: float | None = None
        self._commit_uncertain = False
        self._holding = Holding(dispatcher.memory)
        self._committer = Committer(
            self._commit,
            self._holding,
            rows=settings.commit_rows,
            seconds=settings.commit_seconds,
            patience_s=settings.store_wait_s,
        )
        self.tally = tally or Tally()
        self.message = ""

    async def execute(self) -> None:
        """Return when every row of the part has a committed outcome.

        Raises EngineFailed without replicas, BadSettings for what the model cannot be asked, JobConflict when another
        driver took over or the rows changed since the last run, StoreError.
        """
        await self._patiently(self._open)
        start, stop = self._span
        if self.tally.done >= stop - start:
            return
        self.message = "waiting for a replica"
        replica = await self._dispatcher.replica()
        self.message = "reading"
        request, renderer, template = await asyncio.to_thread(self._prepare, replica)
        self._engine = await self._patiently(lambda: self._pin(request.model, replica.engine.identity))
        stream: Stream[RowKey] = self._dispatcher.stream(template, limit=self._limit, engine=replica.engine)
        try:
            async with asyncio.TaskGroup() as tasks:
                committing = tasks.create_task(self._committer.run())
                tasks.create_task(self._feed(stream, request, renderer))
                async for results in stream:
                    await self._committer.put(self._outcomes(results, request))
                committing.cancel()
            await self._committer.flush()
        except ExceptionGroup as errors:
            raise errors.exceptions[0] from None
        finally:
            self._committer.add(self._outcomes(stream.close(), request))
            # Somebody waits for a run that ends early.
            self._committer.patience_s = min(self._committer.patience_s, LAST_PATIENCE_S)
            try:
                await self._committer.flush()
            finally:
                self._holding.close()
        if self.tally.done != stop - start:
            raise JobConflict(
                f"source: {stop - start} rows were counted and {self.tally.done} have an outcome: it changed while it "
                "was read; submit a new job"
            )

    async def _patiently(self, call: Callable[[], T]) -> T:
        return await while_store_is_away(lambda: finish_in_thread(call), patience_s=lambda: self._settings.store_wait_s)

    def _open(self) -> None:
        self._log.begin()
        self.tally = msgspec.convert(self._log.report, Tally) if self._log.report else Tally()
        self.tally.now_s, self.tally.now_by_replica = 0.0, {}
        self._run_before_s = self.tally.run_s
        self._committed = self._log.committed() if self._log.rows else None

    def _prepare(self, replica: ReplicaInfo) -> tuple[Request, Renderer, Chunk]:
        spec, engine = self._spec, replica.engine
        served = spec.provider.model if spec.provider else engine.model
        if spec.model is not None and spec.model != served:
            raise BadSettings(
                f"'{spec.model}' is not served here, '{served}' is: name that one, or none", field="model"
            )
        renderer = make_renderer(engine, external=spec.provider is not None, requests=spec.endpoint is not None)
        self.tally.model, self.tally.simulated = served, engine.simulated
        self.tally.tensor_parallel_size = engine.tensor_parallel_size
        priority = self._settings.priority if spec.priority is None else spec.priority
        template = Chunk(0, (), renderer.label_ids(spec.labels), spec.sampling, priority, spec.endpoint or "")
        workload = spec.workload + template.path  # the same body asks something else on another route
        return Request(served, workload, spec.labels, spec.sampling), renderer, template

    # --- rows in ---

    async def _feed(self, stream: Stream[RowKey], request: Request, renderer: Renderer) -> None:
        blocks = self._blocks(request, renderer)
        while (block := await asyncio.to_thread(next, blocks, None)) is not None:
            if self._started is None:
                self._started, self.message = time.monotonic(), ""
            await self._committer.put(block.known)
            await stream.put(block.rows, last=block.last)
        stream.finish()

    def _blocks(self, request: Request, renderer: Renderer) -> Iterator[Block]:
        """Rendered rows that have no outcome yet."""
        identity = Identity(request, self._engine)
        rows = self._source.rows(*self._span)
        size = FIRST_BLOCK
        largest = min(LARGEST_BLOCK, max(1, self._settings.backlog_rows // 2))
        characters = int(self._settings.memory_bytes * BLOCK_SHARE)
        last = False
        while not last:
            some, last = _next_rows(rows, min(size, largest), characters)
            if some:
                yield self._block(some, identity, request, renderer, last=last)
            size *= GROWTH

    def _block(self, rows: list[Row], identity: Identity, request: Request, renderer: Renderer, *, last: bool) -> Block:
        keys = [RowKey(row.custom_id, identity.content_hash(row)) for row in rows]
        new = self._without_committed(keys)
        block = Block([], [], last)
        if self._reuse is not None:
            answered = self._reuse.find([keys[i].content_hash for i in new if rows[i].error is None])
            for i in new:
                if (outcome := answered.get(keys[i].content_hash)) is not None:
                    block.known.append(msgspec.structs.replace(outcome, custom_id=keys[i].custom_id))
            new = [i for i in new if keys[i].content_hash not in answered]
        good = [i for i in new if rows[i].error is None]
        prompts = dict(zip(good, renderer.prompts([rows[i] for i in good]), strict=True))
        for i in new:
            prompt = prompts[i] if i in prompts else NotRendered(rows[i].error or "")
            if isinstance(prompt, bytes):
                block.rows.append(RenderedRow(keys[i], prompt, rows[i].expected_tokens))
            else:
                refused = RowResult(keys[i], Completion(status="invalid", error=prompt.error), None, 0)
                block.known.extend(self._outcomes([refused], request))
        return block

    def _without_committed(self, keys: Sequence[RowKey]) -> list[int]:
        if self._committed is None:
            return list(range(len(keys)))
        found = self._committed.lookup(id_keys(key.custom_id for key in keys))
        for key, before in zip(keys, found, strict=True):
            if before is not None and before != int(key.content_hash[:16], 16):
                raise JobConflict(
                    f"row {key.custom_id!r} was answered as another question than would be asked now: serve the model "
                    "and give the data that the job began with, or submit a new job"
                )
        return [i for i, before in enumerate(found) if before is None]

    # --- outcomes out ---

    def _outcomes(self, results: Sequence[RowResult[RowKey]], request: Request) -> list[Outcome]:
        finished_at = datetime.now(UTC).isoformat(timespec="milliseconds")
        return [_outcome(result, request, finished_at) for result in results]

    def _commit(self, outcomes: Sequence[Outcome]) -> None:
        tally = self.tally.copy()
        tally.count(outcomes)
        if self._started is not None:
            tally.now_s = time.monotonic() - self._started
            tally.run_s = self._run_before_s + tally.now_s
        # After an error the commit may still have reached the store.
        if not (self._commit_uncertain and self._log.begin_again()):
            self._commit_uncertain = True
            self._log.append(outcomes, msgspec.to_builtins(tally))
        self._commit_uncertain = False
        self.tally = tally  # only what is on disk counts


def _next_rows(rows: Iterator[Row], most: int, most_characters: int) -> tuple[list[Row], bool]:
    """The next rows of a block, and whether they are the last."""
    taken: list[Row] = []
    characters = 0
    for row in rows:
        taken.append(row)
        characters += len(row.prompt or "") + sum(len(message["content"]) for message in row.messages)
        if len(taken) >= most or characters >= most_characters:
            return taken, False
    return taken, True


def _outcome(result: RowResult[RowKey], request: Request, finished_at: str) -> Outcome:
    key, completion, replica = result.key, result.completion, result.replica
    value, error = None, completion.error
    if completion.response is not None:
        value, error = value_and_error(completion, completion.response)
    elif completion.status == "ok" and request.labels:
        logprobs = dict(zip(request.labels, completion.label_logprobs, strict=True))
        value = {"logprobs": logprobs, "mass": math.fsum(map(math.exp, completion.label_logprobs))}
    elif completion.status == "ok":
        value = {"text": completion.text, "finish_reason": completion.finish_reason}
    return Outcome(
        custom_id=key.custom_id,
        content_hash=key.content_hash,
        status=completion.status,
        value=value,
        error=error,
        attempts=result.attempts,
        replica=replica.replica_id if replica else None,
        model=request.model,
        engine_version=replica.engine.engine_version if replica else None,
        simulated=bool(replica and replica.engine.simulated),
        prompt_tokens=completion.prompt_tokens,
        cached_tokens=completion.cached_tokens,
        completion_tokens=completion.completion_tokens,
        latency_ms=round(completion.latency_ms, 3),
        finished_at=finished_at,
    )
