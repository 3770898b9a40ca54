"""A pool of fake replicas with scripted faults, and helpers to make rows."""

from __future__ import annotations

import asyncio
from collections import Counter

from serve_app.errors import EngineFailed
from serve_app.schema import Chunk, ChunkResult, Completion, EngineInfo, ReplicaInfo, Row, unpack_tokens

ENGINE = EngineInfo("fake", "fake 1", 2, 4096, True, True)


def replica(name: str) -> ReplicaInfo:
    return ReplicaInfo(name, "node", 1, (), ENGINE)


class FakePool:
    """`faults[name]` lists, call by call, whether that replica loses the chunk; `poison` prompts kill any replica;
    `flaky` prompts fail by themselves that many times."""

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

    hold_s = 0.0

    async def replicas(self) -> list[ReplicaInfo]:
        return [replica(name) for name in self.names]

    async def failure(self) -> str:
        return ""

    async def run(self, replica_id: str, chunk: Chunk) -> ChunkResult:
        self.open[replica_id] += len(chunk.prompts)
        self.most_open = max(self.most_open, *self.open.values())
        self.sizes.append(len(chunk.prompts))
        self.served.append((replica_id, chunk))
        try:
            await asyncio.sleep(self.hold_s)
            fault = self.faults.get(replica_id, [])
            call = self.calls[replica_id]
            self.calls[replica_id] += 1
            if replica_id not in self.names or (call < len(fault) and fault[call]):
                raise EngineFailed(f"{replica_id} is lost")
            if self.poison & set(chunk.prompts):
                raise EngineFailed(f"{replica_id} died of poison")
            answers = tuple(self._answer(prompt, chunk) for prompt in chunk.prompts)
            return ChunkResult(chunk.chunk_id, replica(replica_id), answers, self.waiting)
        finally:
            self.open[replica_id] -= len(chunk.prompts)

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


def rows(count: int) -> list[Row]:
    return [Row(f"row-{i}", ({"role": "user", "content": f"question {i}"},)) for i in range(count)]
