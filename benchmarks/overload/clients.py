"""Streamed chats at a fixed rate or a fixed concurrency, each with its key, and what became of every one.

An open loop sends at its moments whatever comes back, as many clients together do, and nobody obeys a Retry-After.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import aiohttp
import msgspec

from benchmarks.load import Load, body, percentile, prompts
from benchmarks.soak.site import Site

TOKENS = 16
# As OpenAI's client; a request that lasts longer is an error here.
TIMEOUT_S = 600.0
TOO_MANY = 429


class Ask(NamedTuple):
    """A request and its answer, in seconds since the load began. `ttft_s` is 0 where no event came."""

    key: str
    sent_s: float
    status: int = 0
    ttft_s: float = 0.0
    took_s: float = 0.0
    retry_after_s: float | None = None
    whole: bool = False
    error: str = ""

    @property
    def accepted(self) -> bool:
        return self.status == 200 and self.whole

    @property
    def refused(self) -> bool:
        """As a client that may come back has to be."""
        return self.status == TOO_MANY and self.retry_after_s is not None

    @property
    def failed(self) -> bool:
        return not (self.accepted or self.refused)


class Asker:
    """Asks the server; all prompts differ."""

    def __init__(self, site: Site) -> None:
        self._site = site
        self._load = Load(site.base_url, site.model, [], TOKENS, stream=True)
        self._number = itertools.count()
        self._seed = time.time_ns()

    async def __aenter__(self) -> Asker:
        timeout = aiohttp.ClientTimeout(total=TIMEOUT_S)
        self._http = aiohttp.ClientSession(timeout=timeout, connector=aiohttp.TCPConnector(limit=0))
        return self

    async def __aexit__(self, *args: object) -> None:
        await self._http.close()

    async def closed(self, concurrency: int, seconds: float, key: str) -> list[Ask]:
        """`concurrency` requests are open at any moment, for so long."""
        started = time.perf_counter()

        async def client() -> list[Ask]:
            asks = []
            while time.perf_counter() - started < seconds:
                asks.append(await self._ask(key, started))
            return asks

        return list(itertools.chain(*await asyncio.gather(*(client() for _ in range(concurrency)))))

    async def open(self, rates: Mapping[str, float], seconds: float) -> asyncio.Future[list[Ask]]:
        """Each key's requests at its rate; returns when the last is sent, with the answers to come."""
        due = sorted((n / rate, key) for key, rate in rates.items() for n in range(int(rate * seconds)))
        started = time.perf_counter()
        sent: list[asyncio.Task[Ask]] = []
        for at_s, key in due:
            if (early_s := started + at_s - time.perf_counter()) > 0:
                await asyncio.sleep(early_s)
            sent.append(asyncio.create_task(self._ask(key, started)))
        await asyncio.sleep(max(0.0, started + seconds - time.perf_counter()))
        return asyncio.gather(*sent)

    async def _ask(self, key: str, started: float) -> Ask:
        (text,) = prompts(1, f"{self._seed}-{next(self._number)}")
        sent = time.perf_counter()
        ask = Ask(key, sent - started)
        first, status, retry, data = 0.0, 0, None, b""
        headers = {"content-type": "application/json", **self._site.headers(key)}
        url = f"{self._site.base_url}/v1/chat/completions"
        try:
            async with self._http.post(url, data=body(self._load, text), headers=headers) as response:
                status, given = response.status, response.headers.get("retry-after")
                retry = float(given) if given is not None else None
                async for part in response.content.iter_any():
                    first = first or time.perf_counter() - sent
                    data = (data + part)[-500:]
        except (aiohttp.ClientError, TimeoutError) as error:
            return ask._replace(status=status, error=f"{type(error).__name__}: {error}")
        whole = data.rstrip().endswith(b"data: [DONE]")
        said = "" if whole else data.decode(errors="replace")
        return ask._replace(
            status=status, ttft_s=first, took_s=time.perf_counter() - sent, retry_after_s=retry, whole=whole, error=said
        )


def figures(asks: Sequence[Ask], seconds: float) -> dict[str, Any]:
    """Of a load that was sent over so many seconds; times in ms of what was accepted."""
    accepted = [ask for ask in asks if ask.accepted]
    refused = [ask for ask in asks if ask.refused]
    failed = [ask for ask in asks if ask.failed]
    return {
        "offered_per_s": round(len(asks) / seconds, 1),
        "accepted_per_s": round(len(accepted) / seconds, 1),
        "refused": len(refused),
        "failed": len(failed),
        "server_errors": sum(ask.status >= 500 for ask in failed),
        "failed_texts": sorted({f"{ask.status} {ask.error}"[:300] for ask in failed})[:3],
        "retry_after_s": [round(percentile([ask.retry_after_s or 0.0 for ask in refused], q), 1) for q in (0, 50, 100)]
        if refused
        else [],
        "refusal_p99_ms": _percentile_ms(refused, "took_s"),
        "ttft_p50_ms": _percentile_ms(accepted, "ttft_s", 50),
        "ttft_p99_ms": _percentile_ms(accepted, "ttft_s"),
        "took_p99_ms": _percentile_ms(accepted, "took_s"),
        "accepted_share": {key: share(asks, key) for key in sorted({ask.key for ask in asks})},
    }


def share(asks: Iterable[Ask], key: str) -> float:
    own = [ask.accepted for ask in asks if ask.key == key]
    return round(sum(own) / len(own), 3)


def recovery_s(asks: Sequence[Ask], normal_ttft_s: float) -> float:
    """When the last request was sent that was slower than normal, or not accepted."""
    return round(max((ask.sent_s for ask in asks if not ask.accepted or ask.ttft_s > normal_ttft_s), default=0.0), 1)


def _percentile_ms(asks: Sequence[Ask], field: str, q: float = 99) -> float | None:
    return round(percentile([getattr(ask, field) for ask in asks], q) * 1000, 1) if asks else None


def encode(asks: Sequence[Ask]) -> bytes:
    """For a file beside the result."""
    return b"\n".join(msgspec.json.encode(ask) for ask in asks)
