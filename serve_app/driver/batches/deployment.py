"""The deployments of `/v1/files` and `/v1/batches`: two small processes without a device or a core of their own.

Two, as Serve gives each application one route prefix. They answer while engines start, are busy or are gone. Files need
only the store. Batches are the driver's jobs: calls go to it by handle, and wait while it restarts.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any, TypeVar, cast

from ray import serve
from ray.exceptions import RayActorError
from ray.serve.exceptions import DeploymentUnavailableError
from ray.serve.handle import DeploymentHandle

from serve_app.driver.batches.files import FileStore
from serve_app.driver.batches.record import BatchRequest
from serve_app.driver.batches.routes import batches_app, files_app
from serve_app.driver.threads import use_large_thread_pool
from serve_app.errors import ServeAppError, ServerUnavailable, StoreError
from serve_app.peers.listing import outside_request
from serve_app.settings import DRIVER_APP, DRIVER_DEPLOYMENT, DriverSettings

logger = logging.getLogger(__name__)
T = TypeVar("T")
# See `deployment.Guard`.
Guard = Callable[[Any], Any]

SWEEP_EVERY_S = 600.0
OPTIONS: dict[str, Any] = {
    "max_ongoing_requests": 256,
    "ray_actor_options": {"num_cpus": 0},
    "logging_config": {"enable_access_log": False},  # clients poll
}


@serve.deployment(name="Files", **OPTIONS)
@serve.ingress()
class Files:
    """Owns the uploaded files. `settings` are the driver's, for the same store."""

    async def __init__(  # type: ignore[misc]  # Serve awaits it
        self, settings: DriverSettings, guard: Guard = lambda app: app
    ) -> None:
        use_large_thread_pool()
        self._guard = guard
        self._files = FileStore(settings.store)
        self._sweeping = asyncio.create_task(self._sweep())

    async def _sweep(self) -> None:
        while True:
            try:
                await asyncio.to_thread(self._files.sweep)
            except StoreError as error:
                logger.warning("cannot remove files that have expired: %s", error)
            await asyncio.sleep(SWEEP_EVERY_S)

    def __serve_build_asgi_app__(self) -> Any:
        return self._guard(files_app(self._files))

    async def __del__(self) -> None:
        if sweeping := getattr(self, "_sweeping", None):
            sweeping.cancel()


@serve.deployment(name="Batches", **OPTIONS)
@serve.ingress()
class Batches:
    """Passes calls on to the driver."""

    def __init__(self, guard: Guard = lambda app: app) -> None:
        self._guard = guard
        self._driver = HandleBatches(serve.get_deployment_handle(DRIVER_DEPLOYMENT, DRIVER_APP))

    def __serve_build_asgi_app__(self) -> Any:
        return self._guard(batches_app(self._driver))


class HandleBatches:
    """See `routes.BatchService`; the driver has a method `batches(call, *args, **kwargs)`."""

    def __init__(self, handle: DeploymentHandle) -> None:
        self._handle = handle

    async def create(self, request: BatchRequest) -> dict[str, Any]:
        return cast("dict[str, Any]", await self._call("create", request))

    async def retrieve(self, batch_id: str) -> dict[str, Any]:
        return cast("dict[str, Any]", await self._call("retrieve", batch_id))

    async def cancel(self, batch_id: str) -> dict[str, Any]:
        return cast("dict[str, Any]", await self._call("cancel", batch_id))

    async def page(self, *, after: str | None = None, limit: int = 20) -> tuple[list[dict[str, Any]], bool]:
        return cast("tuple[list[dict[str, Any]], bool]", await self._call("page", after=after, limit=limit))

    async def _call(self, call: str, *arguments: Any, **named: Any) -> Any:
        """Raises the error that the driver returned, or ServerUnavailable when it died."""

        async def remote() -> Any:
            return await self._handle.batches.remote(call, *arguments, **named)

        try:
            answer = await outside_request(remote())
        except (RayActorError, DeploymentUnavailableError) as error:
            raise ServerUnavailable(f"the driver does not answer: {error}") from error
        if isinstance(answer, ServeAppError):
            raise answer
        return answer
