"""Application builders, named by `import_path` in config.yaml; each takes its settings model."""

import os
from functools import partial

from fastapi import FastAPI
from ray.serve import Application, Deployment
from starlette.middleware.cors import CORSMiddleware

from serve_app.engine.options import check_options
from serve_app.engine.protocol import ASGIApp
from serve_app.serving.backpressure import Paced
from serve_app.serving.gate.middleware import Gate
from serve_app.serving.haproxy.environment import direct_ingress
from serve_app.settings import (
    DRIVER_DEPLOYMENT,
    REPLICA_DEPLOYMENT,
    AccessSettings,
    DriverSettings,
    ModelsSettings,
    ReplicaSettings,
)

# Names that a config file's `deployments` may use, per builder.
DEPLOYMENTS = {
    "replicas": (REPLICA_DEPLOYMENT,),
    "populations": (DRIVER_DEPLOYMENT,),
    "files": ("Files",),
    "batches": ("Batches",),
    "models": ("Models",),
}


def replicas(args: ReplicaSettings) -> Application:
    """N replicas of the engine under `/`: vLLM's OpenAI routes. Raises UnknownOption or BadSettings before a replica
    starts.
    """
    from serve_app.serving.replica import Replica

    if args.simulated is None:
        check_options(args.engine)
    deployment: Deployment = Replica
    # HAProxy chooses replicas itself, also by session, and Serve then refuses a router.
    if not direct_ingress(os.environ):
        deployment = deployment.options(
            request_router_config={
                "request_router_class": "serve_app.serving.router:SessionRouter",
                "request_router_kwargs": args.routing.model_dump(),
            }
        )
    return deployment.bind(args)


def populations(args: DriverSettings) -> Application:
    """The driver under `/v1/populations`. Needs no device; answers while replicas start."""
    from serve_app.driver.deployment import Driver

    return Driver.bind(args, partial(guarded, args.access))  # type: ignore[attr-defined]


def files(args: DriverSettings) -> Application:
    """OpenAI's files under `/v1/files`, in the driver's store."""
    from serve_app.driver.batches.deployment import Files

    return Files.bind(args, partial(guarded, args.access))  # type: ignore[attr-defined]


def batches(args: AccessSettings) -> Application:
    """OpenAI's batches under `/v1/batches`, run by the driver."""
    from serve_app.driver.batches.deployment import Batches

    return Batches.bind(partial(guarded, args))  # type: ignore[attr-defined]


def models(args: ModelsSettings) -> Application:
    """Routes requests to the `replicas` application of their model; for several models only."""
    from serve_app.serving.models.deployment import Models

    return Models.bind(args)  # type: ignore[attr-defined]


def guarded(access: AccessSettings, app: FastAPI) -> ASGIApp:
    """The driver's routes behind keys and limits, open to pages of `allowed_origins`."""
    origins = access.allowed_origins or (("*",) if access.key_files else ())
    app.add_middleware(CORSMiddleware, allow_origins=origins, allow_methods=["*"], allow_headers=["*"])
    return Paced(Gate(app, access, "populations"))
