"""In-cluster client for iterative callers: prompts in, answers out, in order; nothing is stored.

Dispatches as durable jobs do, in the caller's event loop. A prompt is plain text or chat messages.

    async with ReplicaClient.connect() as client:
        answers = await client.score(prompts, labels=["True", "False"])
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence

from serve_app.dispatch.dispatcher import Dispatcher
from serve_app.dispatch.pool import DispatchSettings, ReplicaPool
from serve_app.dispatch.render import NotRendered, Renderer, make_renderer
from serve_app.dispatch.rows import RenderedRow
from serve_app.dispatch.stream import Stream
from serve_app.errors import EngineFailed
from serve_app.schema import Chunk, Completion, EngineInfo, Row, Sampling
from serve_app.settings import REPLICAS_APP

Prompt = str | Sequence[Mapping[str, str]]
# Between online requests (0) and durable jobs (10).
PRIORITY = 5


class ReplicaClient:
    """Async context manager. Concurrent calls of one kind share chunks."""

    def __init__(
        self, pool: ReplicaPool, *, settings: DispatchSettings | None = None, renderer: Renderer | None = None
    ) -> None:
        # Rows are few and known: smaller last chunks save nothing.
        self._dispatcher = Dispatcher(pool, settings or DispatchSettings(min_chunk_rows=32))
        self._renderer = renderer
        self._engine: EngineInfo | None = None
        self._preparing = asyncio.Lock()

    @classmethod
    def connect(
        cls, address: str = "auto", *, app: str = REPLICAS_APP, settings: DispatchSettings | None = None
    ) -> ReplicaClient:
        """Connect to an application's replicas in the Ray cluster at `address`.

        Raises ConnectionError without a cluster.
        """
        import ray

        from serve_app.dispatch.replicas import HandlePool

        if not ray.is_initialized():
            ray.init(address=address, log_to_driver=False)
        return cls(HandlePool.of(app), settings=settings)

    async def __aenter__(self) -> ReplicaClient:
        await self._dispatcher.__aenter__()
        return self

    async def __aexit__(self, *raised: object) -> None:
        await self._dispatcher.__aexit__(*raised)

    async def engine(self) -> EngineInfo:
        """A replica's model, tensor-parallel size, and whether it is simulated.

        Raises EngineFailed without replicas.
        """
        return (await self._dispatcher.replica()).engine

    async def score(
        self, prompts: Sequence[Prompt], labels: Sequence[str], *, priority: int = PRIORITY
    ) -> list[Completion]:
        """One completion a prompt, in order; `label_logprobs` are exact log-probabilities of the labels as next token.

        A prompt without an answer has status `invalid` or `failed` and an error. Raises BadSettings if a label is not
        one token, EngineFailed without replicas.
        """
        renderer = await self._prepared()
        return await self._run(prompts, Chunk(0, (), renderer.label_ids(labels), priority=priority))

    async def generate(
        self, prompts: Sequence[Prompt], sampling: Sampling | None = None, *, priority: int = PRIORITY
    ) -> list[Completion]:
        """One completion a prompt, in order, with `text`. Errors as in `score`."""
        return await self._run(prompts, Chunk(0, (), (), sampling or Sampling(), priority))

    async def _prepared(self) -> Renderer:
        if self._renderer is not None:
            return self._renderer
        engine = (await self._dispatcher.replica()).engine
        async with self._preparing:
            if self._renderer is None:
                self._engine = engine
                self._renderer = await asyncio.to_thread(make_renderer, engine)
            return self._renderer

    async def _run(self, prompts: Sequence[Prompt], template: Chunk) -> list[Completion]:
        renderer = await self._prepared()
        rendered = await asyncio.to_thread(renderer.prompts, [_row(prompt) for prompt in prompts])
        answers: list[Completion] = [
            Completion(status="invalid", error=prompt.error) if isinstance(prompt, NotRendered) else Completion()
            for prompt in rendered
        ]
        good = [RenderedRow(i, prompt) for i, prompt in enumerate(rendered) if isinstance(prompt, bytes)]
        if not good:
            return answers
        stream: Stream[int] = self._dispatcher.stream(template, engine=self._engine)
        try:
            await stream.put(good, last=True)
            async for results in stream:
                for result in results:
                    answers[result.key] = result.completion
        except EngineFailed:
            self._renderer = None  # the model may change before a retry
            raise
        finally:
            stream.close()
        return answers


def _row(prompt: Prompt) -> Row:
    if isinstance(prompt, str):
        return Row("", prompt=prompt)
    return Row("", tuple(dict(message) for message in prompt))
