"""Application builders: what `import_path` in config.yaml names. Their argument is the settings model."""

import os

from ray.serve import Application, Deployment

from serve_app.engine.options import check_options
from serve_app.settings import DriverSettings, ReplicaSettings


def replicas(args: ReplicaSettings) -> Application:
    """N replicas of the engine under `/`: vLLM's OpenAI routes.

    Raises UnknownOption or BadSettings before any replica starts.
    """
    from serve_app.serving.replica import Replica

    if args.simulated is None:
        check_options(args.engine)
    deployment: Deployment = Replica
    # Behind HAProxy an ingress deployment must not have a router of its own. Serve's then decides which replica
    # takes a chunk, and a plan for fewer replicas than run bounds only how many chunks are open.
    if os.environ.get("RAY_SERVE_ENABLE_HA_PROXY") != "1":
        deployment = deployment.options(
            request_router_config={"request_router_class": "serve_app.serving.router:TargetedRequestRouter"}
        )
    return deployment.bind(args)


def populations(args: DriverSettings) -> Application:
    """The driver under `/v1/populations`. It needs no device and answers while replicas start."""
    from serve_app.driver.deployment import Driver

    return Driver.bind(args)  # type: ignore[attr-defined]
