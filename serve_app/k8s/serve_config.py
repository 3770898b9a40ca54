"""serveConfigV2: a preset's Serve config, made from config.yaml or config.gpu.yaml.

Unlike on a single machine it sets model, parallelism, replicas, addresses, keys, store and drain time, and where
deployments without a GPU run.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from serve_app.errors import BadSettings
from serve_app.fields import Frozen
from serve_app.k8s.values import Gpu, Preset, Values
from serve_app.settings import (
    BATCHES_APP,
    DRIVER_APP,
    FILES_APP,
    REPLICAS_APP,
    AccessSettings,
    DriverSettings,
    ReplicaSettings,
)

HTTP_PORT = 8000
CHECKOUT = Path(__file__).parents[2]
# Mounted; written by `serve-app keys`.
KEY_FILE = "/etc/serve-app/keys/keys.yaml"
TLS_FOLDER = "/etc/serve-app/tls"
TLS_OPTIONS = {"ssl_keyfile": f"{TLS_FOLDER}/tls.key", "ssl_certfile": f"{TLS_FOLDER}/tls.crt"}
# Keeps deployments without GPUs off GPU nodes. Not serve-app/part: KubeRay overwrites pod labels with Ray's.
CONTROL_LABEL = {"serve-app/role": "control"}
# To buy a node, pull the image and load weights; two nodes take longer.
REPLICA_WAIT_S = 2700
SETTINGS: dict[str, type[Frozen]] = {
    REPLICAS_APP: ReplicaSettings,
    DRIVER_APP: DriverSettings,
    FILES_APP: DriverSettings,
    BATCHES_APP: AccessSettings,
}


def serve_config(values: Values, preset: Preset, root: Path = Path()) -> dict[str, Any]:
    """The document. Raises BadSettings that names the application."""
    document = _config_file(preset, root)
    # EveryNode: KubeRay's readiness probe asks each worker's own proxy, and ready ones get traffic.
    document["proxy_location"] = "EveryNode"
    document["http_options"] = {**document["http_options"], "host": "0.0.0.0", "port": HTTP_PORT}
    if values.tls.pods:
        document["http_options"] |= TLS_OPTIONS
    if values.logs:
        document["logging_config"] = {**(document.get("logging_config") or {}), "encoding": "JSON"}
    for application in document["applications"]:
        name = application["name"]
        if name == REPLICAS_APP:
            _set_replicas(application, values, preset)
        else:
            _set_control(application, values, preset)
        application["args"] = _checked(name, application["args"])
    return document


def actor_resources(preset: Preset, gpu: Gpu | None) -> dict[str, int]:
    """One replica's resources. Its actor holds all devices, since tensor-parallel workers are child processes."""
    ranks = preset.tensor_parallel
    return {"num_cpus": ranks} if gpu is None else {"num_cpus": ranks * gpu.cpus - 1, "num_gpus": ranks}


def _config_file(preset: Preset, root: Path) -> dict[str, Any]:
    """The Serve config from the current folder, else from this checkout."""
    for folder in (root, CHECKOUT):
        if (folder / preset.config).is_file():
            document: dict[str, Any] = yaml.safe_load((folder / preset.config).read_text())
            return document
    raise BadSettings(f"config: there is no file {preset.config}, here or beside the values file")


def _set_replicas(application: dict[str, Any], values: Values, preset: Preset) -> None:
    args, (deployment,) = application["args"], application["deployments"]
    engine = {**args["engine"], "model": preset.model_path, "tensor_parallel_size": preset.tensor_parallel}
    if preset.revision:
        engine["served_model_name"] = preset.model
    args["engine"] = {**engine, **preset.engine}
    args["access"] = {**args.get("access", {}), "key_files": [KEY_FILE]}
    deployment["ray_actor_options"] = actor_resources(preset, values.gpu(preset))
    deployment["graceful_shutdown_timeout_s"] = values.drain_s
    deployment.pop("num_replicas", None)
    if preset.replicas.fixed:
        deployment["num_replicas"] = preset.replicas.min
        return
    # Nodes are bought, so all new replicas start at once.
    deployment["max_surge_percent"] = 100
    deployment["autoscaling_config"] = {
        "min_replicas": preset.replicas.min,
        "max_replicas": preset.replicas.max,
        "target_ongoing_requests": 64,
        "upscale_delay_s": 5,
        "downscale_delay_s": 300,
        "policy": {"policy_function": "serve_app.serving.autoscaling:BacklogPolicy"},
    }


def _set_control(application: dict[str, Any], values: Values, preset: Preset) -> None:
    args = application["args"]
    if "store" in args:
        args["store"] = values.store
    if application["name"] == DRIVER_APP:
        args["replica_wait_s"] = REPLICA_WAIT_S
    access = args if application["name"] == BATCHES_APP else args.setdefault("access", {})
    access["key_files"] = [KEY_FILE]
    if preset.gpu:
        for deployment in application["deployments"]:
            deployment["ray_actor_options"] = {"num_cpus": 0, "label_selector": CONTROL_LABEL}


def _checked(name: str, args: dict[str, Any]) -> dict[str, Any]:
    if name not in SETTINGS:
        raise BadSettings(f"application '{name}': a preset's config has {', '.join(SETTINGS)} and no other")
    try:
        return SETTINGS[name].model_validate(args).model_dump(mode="json", exclude_unset=True)
    except ValueError as error:
        raise BadSettings(f"application '{name}': {error}") from error
