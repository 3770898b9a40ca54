"""Application builders: what `import_path` in config.yaml names. Their argument is the settings model."""

from ray.serve import Application

from serve_app.engine.options import check_options
from serve_app.settings import DriverSettings, ReplicaSettings


def replicas(args: ReplicaSettings) -> Application:
    """N replicas of the engine under `/`: vLLM's OpenAI routes.

    Raises UnknownOption or BadSettings before any replica starts.
    """
    from serve_app.serving.replica import Replica

    if args.simulated is None:
        check_options(args.engine)
    return Replica.bind(args)  # type: ignore[attr-defined]  # the decorator made it a Deployment


def populations(args: DriverSettings) -> Application:
    """The driver under `/v1/populations`. It needs no device and answers while replicas start."""
    from serve_app.driver.deployment import Driver

    return Driver.bind(args)  # type: ignore[attr-defined]
