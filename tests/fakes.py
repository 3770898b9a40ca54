"""A pool of fake replicas with scripted faults, and helpers to make rows."""

from __future__ import annotations

import asyncio
import math
from collections import Counter
from collections.abc import AsyncGenerator, Iterable, Mapping
from operator import itemgetter

from serve_app.errors import EngineFailed, ReplicaLost
from serve_app.schema import Chunk, Completion, EngineInfo, Finished, ReplicaInfo, Row, unpack_tokens

ENGINE = EngineInfo("fake", "fake 1", 2, 4096, True, True)


def replica(name: str) -> ReplicaInfo:
    return ReplicaInfo(name, "node", 1, (), ENGINE)


class FakePool:
    """`faults[name]` lists, call by call, whether that replica is lost; `poison` prompts end the engine of any;
    `flaky` prompts fail by themselves that many times.

    A replica that dies takes with it what is open on it. In place of `a` comes `a#2` after a moment, and goes on with
    its script: `calls` counts both as `a`.
    """

    def __init__(
        self,
        names: list[str],
        *,
        faults: dict[str, list[bool]] | None = None,
        poison: set[bytes] | None = None,
        flaky: dict[bytes, int] | None = None,
    ) -> None:
        self.names = list(names)
        self.faults = faults or {}
        self.poison = poison or set()
        self.flaky = Counter(flaky or {})
        self.calls: Counter[str] = Counter()
        self.sizes: list[int] = []
        self.open: Counter[str] = Counter()
        self.most_open = 0
        self.served: list[tuple[str, Chunk]] = []
        self.waiting = 0
        self.deaths: list[str] = []
        self._lives: dict[str, asyncio.Future[Exception]] = {}

    hold_s = 0.0
    poison_s = math.inf  # the poison acts after so long, and not later than the answer would come
    poison_error: type[Exception] = EngineFailed
    replace_s = 0.002
    corpse_s = 0.0  # how long the dead are still listed

    async def replicas(self) -> list[ReplicaInfo]:
        return [replica(name) for name in self.names]

    async def failure(self) -> str:
        return ""

    async def run(self, replica_id: str, chunk: Chunk) -> AsyncGenerator[Finished]:
        self.open[replica_id] += len(chunk.prompts)
        self.most_open = max(self.most_open, *self.open.values())
        self.sizes.append(len(chunk.prompts))
        self.served.append((replica_id, chunk))
        try:
            name = replica_id.partition("#")[0]
            life = self._lives.setdefault(replica_id, asyncio.get_running_loop().create_future())
            poisonous = bool(self.poison & set(chunk.prompts))
            await asyncio.wait([life], timeout=min(self.hold_s, self.poison_s) if poisonous else self.hold_s)
            call = self.calls[name]
            self.calls[name] += 1
            if replica_id not in self.names or self.faults.get(name, [])[call : call + 1] == [True]:
                self.die(replica_id, ReplicaLost(f"{replica_id} is lost"))
            elif poisonous:
                self.die(replica_id, self.poison_error(f"{replica_id} died of poison"))
            if life.done():
                raise type(life.result())(str(life.result()))
            answers = {place: self._answer(prompt, chunk) for place, prompt in enumerate(chunk.prompts)}
        finally:
            self.open[replica_id] -= len(chunk.prompts)
        yield Finished(replica(replica_id), answers, self.waiting)

    def die(self, replica_id: str, error: Exception) -> None:
        """It is gone with all that is open on it, unless it was before."""
        loop = asyncio.get_running_loop()
        life = self._lives.setdefault(replica_id, loop.create_future())
        if life.done():
            return
        life.set_result(error)
        if replica_id in self.names:
            self.deaths.append(replica_id)
            loop.call_later(self.replace_s, self.names.append, self._next(replica_id))
            if self.corpse_s:
                loop.call_later(self.corpse_s, self.names.remove, replica_id)
            else:
                self.names.remove(replica_id)

    def _next(self, replica_id: str) -> str:
        name, _, number = replica_id.partition("#")
        return f"{name}#{int(number or 1) + 1}"

    def _answer(self, prompt: bytes, chunk: Chunk) -> Completion:
        if self.flaky[prompt] > 0:
            self.flaky[prompt] -= 1
            return Completion(status="failed", error="flaky")
        return Completion(
            text=str(unpack_tokens(prompt)),
            label_logprobs=tuple(-1.0 - i for i in range(len(chunk.label_ids))),
            prompt_tokens=len(prompt) // 4,
            completion_tokens=1,
        )


def in_order(finished: Iterable[Mapping[int, Completion]]) -> tuple[Completion, ...]:
    """A chunk's completions in the order of its prompts; each came once."""
    came = [entry for completions in finished for entry in completions.items()]
    assert sorted(place for place, _ in came) == list(range(len(came)))
    return tuple(completion for _, completion in sorted(came, key=itemgetter(0)))


def rows(count: int) -> list[Row]:
    return [Row(f"row-{i}", ({"role": "user", "content": f"question {i}"},)) for i in range(count)]
