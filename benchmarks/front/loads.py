"""What each side is asked in a pass, and what it took: rates, and processor time by kind of process."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, NamedTuple

import psutil

from benchmarks.driver import people
from benchmarks.front.client import VllmBench
from benchmarks.front.sides import Measured
from benchmarks.load import Figures
from benchmarks.peers import SETTLE_S, Child, chats, session
from benchmarks.peers.fleet import Ours, Side, awake
from benchmarks.peers.ray_data import RayData
from benchmarks.peers.run_batch import RunBatch
from benchmarks.peers.vllm_serve import HttpServer
from benchmarks.start import kind
from serve_app.client.populations import PopulationClient
from serve_app.errors import ServeAppError
from serve_app.schema import Row
from serve_app.spec import JobSpec
from serve_app.workloads.ctr.asking.prompts import NO, WORKLOAD, YES

CONCURRENCY = 64
STREAM_TOKENS = ROW_TOKENS = 32
POLL_S = 0.1


class Size(NamedTuple):
    """Passes that count, and what is asked in each, so many times: the median of those is the pass's."""

    passes: int = 5
    repeats: int = 3
    chats: int = 512
    streams: int = 96
    scored: int = 2000
    generated: int = 512


QUICK = Size(passes=2, repeats=1, chats=256, streams=64, scored=512, generated=128)


def ask_chats(side: Measured, client: VllmBench, seed: str, size: Size) -> Figures:
    """One-token chats, and streams. Raises ServeAppError where one failed."""
    server = server_of(side)
    figures: Figures = {}
    with awake(server):
        client.ask(server.base_url, server.model, f"{seed}.warm", CONCURRENCY, 4, CONCURRENCY)
        for load, count, tokens in (("req", size.chats, 1), ("stream", size.streams, STREAM_TOKENS)):
            spent: Figures = {}
            with cpu_time(side.session, spent):
                found = [
                    client.ask(server.base_url, server.model, f"{seed}.{load}.{i}", count, tokens, CONCURRENCY)
                    for i in range(size.repeats)
                ]
            figures |= {f"{load}_{name}": statistics.median(one[name] for one in found) for name in found[0]}
            figures |= per_piece(load, spent, count * size.repeats)
    return figures


def server_of(side: Measured) -> Side:
    if not isinstance(side, (Ours, HttpServer)):
        raise ServeAppError(f"{type(side).__name__} answers no chats")
    return side


def ask_rows(side: Measured, number: int, size: Size) -> Figures:
    """Rows scored, and rows answered by text where the side does that. No other pass has these rows."""
    figures: Figures = {}
    for load, count, tokens in (("score", size.scored, 1), ("generate", size.generated, ROW_TOKENS)):
        if tokens > 1 and isinstance(side, (RunBatch, RayData)):
            continue
        spent: Figures = {}
        found = []
        for i in range(size.repeats):
            rows = people(2 * (size.repeats * number + i) + (tokens > 1), count)
            if isinstance(side, Child):
                found.append(ask_child(side, rows, tokens))
            else:
                server = server_of(side)
                with awake(server), cpu_time(side.session, spent):
                    found.append(ask_driver(server.base_url, rows, tokens))
        if answered := [one.answered for one in found if one.answered != count]:
            raise ServeAppError(f"{load}: {answered[0]} of {count} rows were answered")
        figures[f"{load}_rows_per_s"] = statistics.median(count / one.wall_s for one in found)
        figures[f"{load}_tok_per_s"] = statistics.median(one.tokens / one.wall_s for one in found)
        figures |= per_piece(load, spent, count * size.repeats)
    return figures


def per_piece(load: str, spent: Figures, pieces: int) -> Figures:
    """Milliseconds of processor time of a chat or a row, by kind of process."""
    return {f"{load}_cpu_ms.{name}": 1000 * seconds / pieces for name, seconds in spent.items()}


class Answered(NamedTuple):
    """Seconds, rows with an answer, and generated tokens."""

    wall_s: float
    answered: int
    tokens: int


def ask_driver(base_url: str, rows: Sequence[Row], tokens: int) -> Answered:
    """From submitting a population to hearing that it is complete."""
    client = PopulationClient(base_url)
    asked: dict[str, Any] = {"labels": [YES, NO]} if tokens == 1 else {"max_tokens": tokens, "temperature": 0.0}
    started = time.perf_counter()
    job_id = client.submit(JobSpec.of(rows, workload=WORKLOAD, **asked))
    while (status := client.status(job_id)).state.active:
        time.sleep(POLL_S)
    return Answered(time.perf_counter() - started, status.ok, status.completion_tokens)


def ask_child(side: Child, rows: Sequence[Row], tokens: int) -> Answered:
    """The time that the peer's own call takes."""
    message: dict[str, Any] = {"rows": chats(rows)}
    if tokens > 1:
        message["max_tokens"] = tokens
    side.thaw()
    time.sleep(SETTLE_S)
    try:
        reply = side.call(message)
    finally:
        side.freeze()
    answered = sum(one is not None for one in reply["logprobs"]) if tokens == 1 else reply["completed"]
    return Answered(reply["wall_s"], answered, reply.get("completion_tokens", answered))


@contextmanager
def cpu_time(leader: int, spent: Figures) -> Iterator[None]:
    """Add to `spent` the seconds of processor time of each kind of process of a session."""
    before = _cpu_times(leader)
    yield
    for pid, (name, seconds) in _cpu_times(leader).items():
        spent[name] = spent.get(name, 0.0) + seconds - before.get(pid, (name, 0.0))[1]


def _cpu_times(leader: int) -> dict[int, tuple[str, float]]:
    found = {}
    for process in session(leader):
        with suppress(psutil.Error):
            times = process.cpu_times()
            found[process.pid] = (kind(process), times.user + times.system)
    return found
