"""Replicas that answer as a test tells them, row by row."""

import asyncio
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Collection
from dataclasses import dataclass, field

from serve_app.schema import Chunk, Finished
from tests.fakes import FakePool, replica


@dataclass(eq=False)
class Call:
    """An open call: what is told to it, it yields or raises; None ends it."""

    replica_id: str
    chunk: Chunk
    told: asyncio.Queue[list[int] | Exception | None] = field(default_factory=asyncio.Queue)
    open: list[int] = field(default_factory=list)

    def finish(self, places: Collection[int]) -> None:
        self.told.put_nowait([*places])
        self.open = [place for place in self.open if place not in places]
        if not self.open:
            self.told.put_nowait(None)

    def finish_but(self, held: Collection[bytes]) -> None:
        if places := [place for place in self.open if self.chunk.prompts[place] not in held]:
            self.finish(places)


class Told(FakePool):
    """Does what a test tells its calls."""

    def __init__(self, names: list[str]) -> None:
        super().__init__(names)
        self.open_calls: list[Call] = []
        self.sent: Counter[bytes] = Counter()
        self.answered: set[bytes] = set()
        self.alone: set[bytes] = set()  # when their engine died

    async def run(self, replica_id: str, chunk: Chunk) -> AsyncGenerator[Finished]:
        call = Call(replica_id, chunk, open=[*range(len(chunk.prompts))])
        self.open_calls.append(call)
        self.sent.update(chunk.prompts)
        assert not self.answered & set(chunk.prompts), "a row that was answered is sent again"
        try:
            while (told := await call.told.get()) is not None:
                if isinstance(told, Exception):
                    raise told
                self.answered |= {chunk.prompts[place] for place in told}
                answers = {place: self._answer(chunk.prompts[place], chunk) for place in told}
                yield Finished(replica(replica_id), answers)
        finally:
            self.open_calls.remove(call)

    def kill(self, name: str, error: Exception) -> None:
        calls = [call for call in self.open_calls if call.replica_id == name]
        open_rows = [call.chunk.prompts[place] for call in calls for place in call.open]
        self.alone.update(open_rows if len(open_rows) == 1 else ())
        for call in calls:
            call.told.put_nowait(error)
        self.names[self.names.index(name)] = self._next(name)


async def until(condition: Callable[[], bool], pool: Told | None = None, held: Collection[bytes] = ()) -> None:
    """Wait; meanwhile `pool` answers all but the `held` rows."""
    async with asyncio.timeout(20):
        while not condition():
            for call in [*pool.open_calls] if pool else []:
                call.finish_but(held)
            await asyncio.sleep(0.0005)
