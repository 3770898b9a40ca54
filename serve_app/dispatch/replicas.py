"""The replicas of a Serve deployment handle."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import AsyncGenerator, Coroutine
from typing import Any, TypeVar

from ray import serve
from ray.exceptions import (
    NodeDiedError,
    ObjectLostError,
    OutOfMemoryError,
    RayActorError,
    RayTaskError,
    TaskCancelledError,
    WorkerCrashedError,
)
from ray.serve.exceptions import DeploymentUnavailableError, ReplicaUnavailableError
from ray.serve.handle import DeploymentHandle

from serve_app.errors import EngineFailed, ReplicaLost
from serve_app.schema import Chunk, Finished, ReplicaInfo
from serve_app.settings import REPLICA_DEPLOYMENT, REPLICAS_APP

T = TypeVar("T")
# A slower replica counts as unable to work.
DESCRIBE_TIMEOUT_S = 5.0
# Random tries when none is known and one hangs.
GUESSES = 8
# Replica or node gone, or stopped by Serve. A result is lost with its node (ObjectLostError).
LOST = (
    RayActorError,
    WorkerCrashedError,
    NodeDiedError,
    ObjectLostError,
    OutOfMemoryError,
    TaskCancelledError,
    DeploymentUnavailableError,
    ReplicaUnavailableError,
)


class HandlePool:
    """See `dispatcher.ReplicaPool`."""

    def __init__(self, handle: DeploymentHandle, app: str = REPLICAS_APP) -> None:
        self._handle = handle
        self._streaming = handle.options(stream=True)
        self._app = app
        self._known: list[str] = []

    @classmethod
    def of(cls, app: str = REPLICAS_APP) -> HandlePool:
        return cls(serve.get_deployment_handle(REPLICA_DEPLOYMENT, app), app)

    async def replicas(self) -> list[ReplicaInfo]:
        try:
            answers = await self._handle.broadcast("describe").results_async(
                timeout_s=DESCRIBE_TIMEOUT_S, return_exceptions=True
            )
        except DeploymentUnavailableError:
            return []
        except TimeoutError:  # one hanging replica blocks a broadcast
            # Not when none runs: the call would start one.
            asked: list[str | None] = [*self._known]
            if not asked and await self._any_runs():
                asked = [None] * GUESSES
            answers = await asyncio.gather(*map(self._describe, asked))
        found = {answer.replica_id: answer for answer in answers if isinstance(answer, ReplicaInfo)}
        self._known = list(found) or self._known
        return list(found.values())

    async def _describe(self, replica_id: str | None) -> ReplicaInfo | None:
        response = self._handle.describe.remote(replica_id=replica_id)
        try:
            async with asyncio.timeout(DESCRIBE_TIMEOUT_S):
                answer: ReplicaInfo = await response
                return answer
        except Exception:  # gone or hanging
            response.cancel()
            return None

    async def _any_runs(self) -> bool:
        app = (await asyncio.to_thread(serve.status)).applications.get(self._app)
        deployment = app and app.deployments.get(REPLICA_DEPLOYMENT)
        return bool(deployment and deployment.replica_states.get("RUNNING"))

    async def failure(self) -> str:
        status = (await asyncio.to_thread(serve.status)).applications.get(self._app)
        if status is None or status.status != "DEPLOY_FAILED":
            return ""
        told = [status.message, *(deployment.message for deployment in status.deployments.values())]
        lines: list[str] = [line for text in told for line in text.splitlines() if line.strip()]
        ours = [line.partition("serve_app.errors.")[2] for line in lines if "serve_app.errors." in line]
        return (ours or lines or ["no reason was given"])[-1]

    async def run(self, replica_id: str, chunk: Chunk) -> AsyncGenerator[Finished]:
        response = self._streaming.run_chunk.remote(chunk, replica_id=replica_id)
        try:
            async for finished in response:
                yield finished
        except GeneratorExit:
            response.cancel()  # else the replica computes on
            raise
        except asyncio.CancelledError:
            response.cancel()
            if (task := asyncio.current_task()) is None or task.cancelling():
                raise
            # Also raised when the replica cancelled.
            raise ReplicaLost("the call was cancelled on the replica") from None
        except RayTaskError as error:  # first: also an instance of its cause's type
            if isinstance(error.cause, EngineFailed):
                raise EngineFailed(str(error.cause)) from error
            if isinstance(error.cause, asyncio.CancelledError):
                raise ReplicaLost("the call was cancelled on the replica") from error
            raise
        except LOST as error:
            raise ReplicaLost(f"{type(error).__name__}: {(str(error).splitlines() or [''])[-1].strip()}") from error


async def outside_request(work: Coroutine[Any, Any, T]) -> T:
    """Await in an own context (see `Dispatcher._start`)."""
    return await asyncio.create_task(work, context=contextvars.Context())
