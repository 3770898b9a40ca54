"""The load generator: chat requests to an OpenAI server, and when each byte of the answers came.

Knows HTTP and server-sent events; does not know whose server it is, or what a good figure would be. It shares the
machine's cores with the server that it measures, so it does as little as it can while the clock runs: it is a process
of its own (`run` starts it, `main` is its side), on aiohttp's C parser and uvloop; bodies are made before, and of an
answer only (moment, bytes) is kept. Events are cut and JSON is read after the last answer. `vllm bench serve` reads
each chunk's JSON as it comes, and takes 10 s of both cores to import.

    closed loop   `concurrency` requests are open at any moment, until all are answered
    open loop     one request every 1 / `request_rate` seconds, however long answers take
"""

from __future__ import annotations

import asyncio
import itertools
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec

from serve_app.errors import ServeAppError

ROOT = Path(__file__).parents[1]
TIMEOUT_S = 300.0
# Shared by all prompts, as most applications have it: three blocks of 32 tokens.
SYSTEM = (
    "You are a careful writer who helps an advertising agency. You are given a list of words from a customer. Write "
    "one short story in which each of the words is used once, in the order in which they are given. Keep the story "
    "friendly, plain and easy to read, avoid names of real people and brands, and do not explain what you are doing. "
    "Do not repeat the list, do not number your sentences, and do not add a title or a closing remark of any kind."
)
# One token each after a space, so that all prompts are of one length.
WORDS = (
    "time year people way day man thing woman life child world school state family student group country problem hand "
    "part place case week company system program question work government number night point home water room mother "
    "area money story fact month lot right study book eye job word business issue side kind head house service friend "
    "father power hour game line end member law car city community name"
)
WORDS_PER_PROMPT = 64

Figures = dict[str, float]


class Load(msgspec.Struct, frozen=True):
    """What is asked: every prompt once, each answered by `max_tokens` tokens. One of the two loops is set."""

    base_url: str
    model: str
    prompts: list[str]
    max_tokens: int
    stream: bool
    concurrency: int = 0
    request_rate: float = 0.0


class Answer(msgspec.Struct, frozen=True):
    """One answer. Times are seconds since the load began; `chunks_s` are those of chunks with content."""

    sent_s: float
    done_s: float
    chunks_s: list[float] = []
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    error: str = ""


class Result(msgspec.Struct, frozen=True):
    """All answers, the time from the first request to the last answer, and what this process took of the cores."""

    answers: list[Answer]
    wall_s: float
    cpu_s: float


class Exchange(msgspec.Struct):
    """A request as it went: moments of this process's clock, and what was read then."""

    sent: float
    status: int = 0
    reads: list[tuple[float, bytes]] = []
    error: str = ""


def prompts(count: int, seed: str) -> list[str]:
    """Texts of one length that begin to differ with their first word; another seed gives others."""
    draw, words = random.Random(seed), WORDS.split()
    return [" ".join(["Words:", *draw.choices(words, k=WORDS_PER_PROMPT)]) for _ in range(count)]


def run(load: Load) -> Result:
    """Put the load on the server, from a process of its own. Raises ServeAppError when that process fails."""
    command = [sys.executable, "-m", "benchmarks.load"]
    # Into a file: a pipe that somebody made non-blocking takes 64 KiB and no more, once in a few hundred runs.
    with tempfile.TemporaryFile() as output:
        done = subprocess.run(
            command, input=msgspec.json.encode(load), stdout=output, stderr=subprocess.PIPE, cwd=ROOT, check=False
        )
        output.seek(0)
        result = output.read()
    try:
        return msgspec.json.decode(result, type=Result)
    except msgspec.DecodeError as error:
        said = done.stderr.decode(errors="replace")[-500:]
        wrote = f"{len(result)} bytes and ended with {done.returncode}"
        raise ServeAppError(f"the load generator wrote {wrote}: {error}: {said}") from error


def main() -> None:
    import uvloop

    load = msgspec.json.decode(sys.stdin.buffer.read(), type=Load)
    sys.stdout.buffer.write(msgspec.json.encode(uvloop.run(generate(load))))


def stream_figures(result: Result) -> Figures:
    """Rates, and times in ms: to the first chunk with content (TTFT), and from each such chunk to the next (ITL)."""
    answers = good(result)
    tokens = sum(one.completion_tokens for one in answers)
    ttft_ms = [(one.chunks_s[0] - one.sent_s) * 1000 for one in answers]
    itl_ms = [(after - before) * 1000 for one in answers for before, after in itertools.pairwise(one.chunks_s)]
    prompt_tokens = [one.prompt_tokens for one in answers]
    return {
        "tok_per_s": tokens / result.wall_s,
        "ttft_p50_ms": percentile(ttft_ms, 50),
        "ttft_p99_ms": percentile(ttft_ms, 99),
        "itl_p50_ms": percentile(itl_ms, 50),
        "itl_p99_ms": percentile(itl_ms, 99),
        "tokens_per_chunk": tokens / sum(len(one.chunks_s) for one in answers),
        "min_prompt_tokens": float(min(prompt_tokens)),
        "max_prompt_tokens": float(max(prompt_tokens)),
        "cached_share": sum(one.cached_tokens for one in answers) / sum(prompt_tokens),
        "client_cores": result.cpu_s / result.wall_s,
    }


def good(result: Result) -> list[Answer]:
    """Answers without an error. Raises ServeAppError where there is none."""
    answers = [one for one in result.answers if not one.error]
    if not answers:
        raise ServeAppError(
            f"no request was answered: {result.answers[0].error if result.answers else 'none was sent'}"
        )
    return answers


def percentile(values: Sequence[float], q: float) -> float:
    """The q-th percentile, between two values by distance. Raises ServeAppError of nothing."""
    import numpy as np

    if not values:
        raise ServeAppError("no percentile: no answer had two chunks with content")
    return float(np.percentile(values, q))


async def generate(load: Load) -> Result:
    """Ask everything, then read the answers."""
    import aiohttp

    bodies = [body(load, prompt) for prompt in load.prompts]
    timeout = aiohttp.ClientTimeout(total=TIMEOUT_S)
    async with aiohttp.ClientSession(timeout=timeout, connector=aiohttp.TCPConnector(limit=0)) as session:
        cpu_before, started = time.process_time(), time.perf_counter()
        if load.request_rate:
            exchanges = await open_loop(session, load, bodies)
        else:
            exchanges = await closed_loop(session, load, bodies)
        wall_s, cpu_s = time.perf_counter() - started, time.process_time() - cpu_before
    return Result([answer(one, started, stream=load.stream) for one in exchanges], wall_s, cpu_s)


def body(load: Load, prompt: str) -> bytes:
    """The request's body."""
    request: dict[str, Any] = {
        "model": load.model,
        "messages": [{"role": "system", "content": SYSTEM}, {"role": "user", "content": prompt}],
        "max_tokens": load.max_tokens,
        "temperature": 0.0,
        "ignore_eos": True,
        "skip_special_tokens": False,  # an end that is ignored is a chunk with content, like any other token
    }
    if load.stream:
        request |= {"stream": True, "stream_options": {"include_usage": True}}
    return msgspec.json.encode(request)


async def closed_loop(session: Any, load: Load, bodies: Sequence[bytes]) -> list[Exchange]:
    """As many clients as `concurrency`, each sending the next request when its last is answered."""
    waiting = iter(bodies)

    async def client() -> list[Exchange]:
        return [await ask(session, load, one) for one in waiting]

    return list(itertools.chain(*await asyncio.gather(*(client() for _ in range(load.concurrency)))))


async def open_loop(session: Any, load: Load, bodies: Sequence[bytes]) -> list[Exchange]:
    """A request at each of its moments."""
    started = time.perf_counter()

    async def at(due_s: float, one: bytes) -> Exchange:
        await asyncio.sleep(started + due_s - time.perf_counter())
        return await ask(session, load, one)

    return await asyncio.gather(*(at(i / load.request_rate, one) for i, one in enumerate(bodies)))


async def ask(session: Any, load: Load, one: bytes) -> Exchange:
    """Send a request and keep what comes. An error is part of the exchange."""
    import aiohttp

    exchange = Exchange(time.perf_counter())
    reads = exchange.reads
    url, headers = f"{load.base_url}/v1/chat/completions", {"Content-Type": "application/json"}
    try:
        async with session.post(url, data=one, headers=headers) as response:
            exchange.status = response.status
            async for data in response.content.iter_any():
                reads.append((time.perf_counter(), data))
    except (aiohttp.ClientError, TimeoutError) as error:
        exchange.error = f"{type(error).__name__}: {error}"
    return exchange


def answer(exchange: Exchange, started: float, *, stream: bool) -> Answer:
    """What an exchange says. An answer that is cut off, refused or without content has an `error`."""
    sent_s = exchange.sent - started
    done_s = (exchange.reads[-1][0] if exchange.reads else exchange.sent) - started
    if exchange.error or exchange.status != 200:
        return Answer(sent_s, done_s, error=exchange.error or f"{exchange.status}: {_text(exchange)[:200]}")
    try:
        chunks_s, usage = _read_stream(exchange, started) if stream else ([], _read_body(exchange))
        cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0
        return Answer(sent_s, done_s, chunks_s, usage["prompt_tokens"], cached, usage["completion_tokens"])
    except (LookupError, TypeError, ValueError, ServeAppError) as error:
        return Answer(sent_s, done_s, error=f"{type(error).__name__}: {error}: {_text(exchange)[-200:]}")


def events(reads: Iterable[tuple[float, bytes]]) -> Iterator[tuple[float, bytes]]:
    """(moment, data) of each server-sent event; its moment is that of the read which completed it."""
    rest = b""
    for at, data in reads:
        *whole, rest = (rest + data).replace(b"\r\n", b"\n").split(b"\n\n")
        for event in whole:
            if lines := [line[5:].lstrip() for line in event.split(b"\n") if line.startswith(b"data:")]:
                yield at, b"\n".join(lines)


def _read_stream(exchange: Exchange, started: float) -> tuple[list[float], dict[str, Any]]:
    chunks_s: list[float] = []
    usage: dict[str, Any] = {}
    for at, data in events(exchange.reads):
        if data == b"[DONE]":
            break
        chunk = msgspec.json.decode(data)
        if "error" in chunk:
            raise ServeAppError(str(chunk["error"]))
        usage = chunk.get("usage") or usage
        if any(choice["delta"].get("content") for choice in chunk["choices"]):
            chunks_s.append(at - started)
    if not chunks_s:
        raise ServeAppError("no chunk had content")
    return chunks_s, usage


def _read_body(exchange: Exchange) -> dict[str, Any]:
    found: dict[str, Any] = msgspec.json.decode(b"".join(data for _, data in exchange.reads))["usage"]
    return found


def _text(exchange: Exchange) -> str:
    return b"".join(data for _, data in exchange.reads).decode(errors="replace")


if __name__ == "__main__":
    main()
