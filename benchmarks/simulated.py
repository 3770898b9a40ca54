"""Simulated replicas in this process, for the real driver to work against. Whatever they answer is marked simulated.

`SimulatedPool` computes as slowly as measured (`settings.SimulatedSettings`); `InstantPool` answers at once, so that
only the driver costs time.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Iterable

from serve_app.engine.simulated.device import TOKEN_BYTES
from serve_app.engine.simulated.engine import SimulatedEngine
from serve_app.errors import ReplicaLost
from serve_app.schema import Chunk, Completion, EngineInfo, Finished, ReplicaInfo
from serve_app.settings import SimulatedSettings


class SimulatedPool:
    """See `driver.dispatch.ReplicaPool`. Replicas can be killed and can join while it is used."""

    def __init__(self, names: Iterable[str], settings: SimulatedSettings) -> None:
        self._settings = settings
        self.engines: dict[str, SimulatedEngine] = {}
        self.chunks: dict[str, int] = {}
        for name in names:
            self.join(name)

    def join(self, name: str) -> None:
        """A replica is ready."""
        self.engines[name] = SimulatedEngine({"tensor_parallel_size": 2}, self._settings)
        self.chunks[name] = 0

    async def kill(self, name: str) -> None:
        """The replica is gone, and all that it had open."""
        await self.engines.pop(name).shutdown()

    def info(self, name: str) -> ReplicaInfo:
        """What the replica says of itself."""
        return ReplicaInfo(name, "simulated", 0, (), self.engines[name].info)

    async def replicas(self) -> list[ReplicaInfo]:
        return [self.info(name) for name in self.engines]

    async def failure(self) -> str:
        return ""

    async def run(self, replica_id: str, chunk: Chunk) -> AsyncGenerator[Finished]:
        engine = self.engines.get(replica_id)
        if engine is None:
            raise ReplicaLost(f"simulated: {replica_id} is gone")
        self.chunks[replica_id] += 1
        async for completions in engine.run(chunk):
            if self.engines.get(replica_id) is not engine:
                raise ReplicaLost(f"simulated: {replica_id} was lost")
            yield Finished(self.info(replica_id), completions, engine.waiting)


class InstantPool:
    """Replicas that know every answer already."""

    def __init__(self, replicas: int) -> None:
        engine = EngineInfo("instant", "simulated", 2, 1 << 20, True, simulated=True)
        self._replicas = [ReplicaInfo(f"replica-{i:03d}", "simulated", 0, (), engine) for i in range(replicas)]
        self._by_id = {replica.replica_id: replica for replica in self._replicas}

    async def replicas(self) -> list[ReplicaInfo]:
        return self._replicas

    async def failure(self) -> str:
        return ""

    async def run(self, replica_id: str, chunk: Chunk) -> AsyncGenerator[Finished]:
        await asyncio.sleep(0)
        logprobs = tuple(-1.0 for _ in chunk.label_ids)
        answers = {
            place: Completion(label_logprobs=logprobs, prompt_tokens=len(prompt) // TOKEN_BYTES, completion_tokens=1)
            for place, prompt in enumerate(chunk.prompts)
        }
        yield Finished(self._by_id[replica_id], answers)
