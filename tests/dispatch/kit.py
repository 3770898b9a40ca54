"""Rows through a dispatcher over a fake pool."""

from collections.abc import Callable, Sequence

from serve_app.dispatch.dispatcher import Dispatcher
from serve_app.dispatch.pool import DispatchSettings
from serve_app.dispatch.rows import RenderedRow, RowResult
from serve_app.dispatch.stream import Stream
from serve_app.schema import Chunk, pack_tokens
from tests.fakes import FakePool

FAST = DispatchSettings(
    chunk_rows=4, min_chunk_rows=1, window_rows=8, max_window_rows=16, max_attempts=6, refresh_s=0.001,
    replica_wait_s=0.2,
)  # fmt: skip
TEMPLATE = Chunk(0, ())


async def dispatch(
    pool: FakePool,
    prompts: Sequence[bytes],
    sizes: DispatchSettings = FAST,
    limit: Callable[[int], int] = lambda available: available,
) -> list[RowResult[int]]:
    async with Dispatcher(pool, sizes) as dispatcher:
        stream: Stream[int] = dispatcher.stream(TEMPLATE, limit=limit)
        await stream.put(RenderedRow(i, prompt) for i, prompt in enumerate(prompts))
        stream.finish()
        results = [result async for some in stream for result in some]
        stream.close()
        return results


def prompts(count: int) -> list[bytes]:
    return [pack_tokens([1, 2, i]) for i in range(count)]


def resized(sizes: DispatchSettings, **changed: int) -> DispatchSettings:
    return sizes.model_copy(update=changed)
