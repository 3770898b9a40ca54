"""Reads a Serve config file as `serve run` does, and finds mistakes before anything starts.

`serve run` reports a wrong argument after half a minute, from inside a replica; this takes a second.
"""

from __future__ import annotations

import difflib
import socket
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from serve_app.engine.host.cpu import GIB, available_cores, cpu_build, memory_bytes
from serve_app.engine.host.fit import fit_to_host
from serve_app.engine.options import check_options
from serve_app.errors import BadSettings, StoreError
from serve_app.models.catalog import check_heads, resolve_model
from serve_app.serving.gate.keys import read_keys
from serve_app.settings import (
    BATCHES_APP,
    DRIVER_APP,
    FILES_APP,
    MODELS_APP,
    REPLICA_DEPLOYMENT,
    REPLICAS_APP,
    AccessSettings,
    DriverSettings,
    ModelsSettings,
    ReplicaSettings,
)
from serve_app.storage.filesystem import Folder


@dataclass(frozen=True, slots=True)
class EngineConfig:
    """An application of replicas."""

    app: str
    replicas: int  # that should be ready at the start; may be 0 where a cluster starts empty
    settings: ReplicaSettings
    route_prefix: str = "/"

    @property
    def models(self) -> tuple[str, ...]:
        """The names that it serves, adapters too."""
        return served_names(self.settings.engine)


@dataclass(frozen=True, slots=True)
class ServeConfig:
    """A checked config file. The first of `engines` answers requests that name no model; `worked` has populations."""

    path: Path
    host: str
    port: int
    engines: tuple[EngineConfig, ...]
    driver_settings: DriverSettings
    accesses: tuple[AccessSettings, ...]

    @property
    def replicas(self) -> int:
        """How many should be ready at the start, of all engines."""
        return sum(engine.replicas for engine in self.engines)

    @property
    def worked(self) -> EngineConfig:
        """The engine whose replicas work populations."""
        return next(engine for engine in self.engines if engine.app == self.driver_settings.replicas)

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
        names = [REPLICAS_APP]
        if models_app := applications.get(MODELS_APP):
            models = _parse(ModelsSettings, models_app, path)
            names = [application.name for application in models.applications]
        for name in (*names, DRIVER_APP):
            if name not in applications:
                raise BadSettings(f"{path}: there is no application named '{name}'")
        http = document.get("http_options") or {}
        driver_app = applications[DRIVER_APP]
        engines = tuple(_engine(applications[name], path) for name in names)
        driver_settings = _parse(DriverSettings, driver_app, path)
        if driver_settings.replicas not in names:
            raise BadSettings(
                f"{path}: applications.{DRIVER_APP}.args.replicas: '{driver_settings.replicas}' is not one of "
                + ", ".join(names)
            )
        accesses = [driver_settings.access, *(engine.settings.access for engine in engines)]
        if files_app := applications.get(FILES_APP):
            files_settings = _parse(DriverSettings, files_app, path)
            accesses.append(files_settings.access)
        if files_app and files_settings.store != driver_settings.store:
            raise BadSettings(
                f"{path}: applications.{FILES_APP}.args.store: it is not the driver's, '{driver_settings.store}', so "
                "batches would not find their files"
            )
        if models_app:
            _check_names(path, models, engines)
            accesses.append(models.access)
        if batches_app := applications.get(BATCHES_APP):
            accesses.append(_parse(AccessSettings, batches_app, path))
        return cls(
            path=path,
            host=str(http.get("host", "127.0.0.1")),
            port=int(http.get("port", 8000)),
            engines=engines,
            driver_settings=driver_settings,
            accesses=tuple(accesses),
        )

    def check(self, *, port: bool = True) -> None:
        """Check against the installed vLLM and this machine: options, model, tensor parallelism, port, store.

        Raises BadSettings, UnknownOption, ModelNotFound or NotEnoughMemory.
        """
        real = [engine for engine in self.engines if engine.settings.simulated is None]
        for engine in real:
            check_options(engine.settings.engine)
        self._check_models(real)
        for file in {file for access in self.accesses for file in access.key_files}:
            read_keys(Path(file))
        if port:
            self._check_port()
        store = self.driver_settings.store
        if "://" in store:
            probe = Folder.at(store).child("probe")
            probe.write("probe", b"")
            probe.clear()
        else:
            check_store(Path(store))

    def _check_models(self, engines: list[EngineConfig]) -> None:
        free, total = memory_bytes()
        for engine in engines:
            options = engine.settings.engine
            model = resolve_model(options["model"])
            ranks = int(options.get("tensor_parallel_size") or 1)
            check_heads(model, ranks)
            if cpu_build():
                replicas = max(1, engine.replicas)  # one that starts at zero must still have room for one
                fit = fit_to_host(options, model, replicas=replicas, total=total, free=free, checked=replicas)
                free -= ranks * replicas * (fit.worker + fit.kv)  # the next one has what is left

    def notes(self) -> list[str]:
        """What somebody who starts this on this machine should know, a sentence each; after `check`."""
        if not cpu_build():
            return []
        notes, cores, total = [], len(available_cores()), memory_bytes()[1]
        for engine in self.engines:
            if engine.settings.simulated is not None:
                continue
            options = engine.settings.engine
            ranks = int(options.get("tensor_parallel_size") or 1)
            model, replicas = resolve_model(options["model"]), max(1, engine.replicas)
            fit = fit_to_host(options, model, replicas=replicas, total=total, free=total)
            if fit.chosen:
                dtype, reason = fit.chosen
                notes.append(f"{engine.app} compute in {dtype}: {reason}; engine.dtype sets another type")
            if engine.replicas * ranks > max(cores, ranks):
                enough = max(1, cores // ranks)
                spared = (engine.replicas - enough) * ranks * (fit.worker + fit.kv) / GIB
                notes.append(
                    f"{engine.replicas} replicas of {ranks} ranks share {cores} cores: num_replicas: {enough} would be "
                    f"as fast and need {spared:.1f} GiB less memory"
                )
        return notes

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


def served_names(options: Mapping[str, Any]) -> tuple[str, ...]:
    """The names under which an engine with these options serves its model and adapters."""
    served = options.get("served_model_name") or options.get("model") or ()
    adapters = [one["name"] if isinstance(one, dict) else one.partition("=")[0]
                for one in options.get("lora_modules") or ()]  # fmt: skip
    return (*([served] if isinstance(served, str) else served), *adapters)


def set_store(document: dict[str, Any], store: str) -> None:
    """Give every application of a config document that has a store this one."""
    for application in document["applications"]:
        if "store" in application.get("args", {}):
            application["args"]["store"] = store


def _engine(application: dict[str, Any], path: Path) -> EngineConfig:
    settings = _parse(ReplicaSettings, application, path)
    return EngineConfig(application["name"], _replicas(application), settings, application.get("route_prefix", "/"))


def _check_names(path: Path, models: ModelsSettings, engines: tuple[EngineConfig, ...]) -> None:
    """Raises BadSettings for a name that its engine does not have, or that two engines have."""
    field = f"{path}: applications.{MODELS_APP}.args.applications"
    owners: dict[str, str] = {}
    for application, engine in zip(models.applications, engines, strict=True):
        for name in application.models:
            if name not in engine.models:
                raise BadSettings(
                    f"{field}: '{engine.app}' does not serve '{name}' but {', '.join(engine.models)}: "
                    "correct it there, or set served_model_name"
                )
        for name in engine.models:
            if (owner := owners.setdefault(name, engine.app)) != engine.app:
                raise BadSettings(f"{field}: '{owner}' and '{engine.app}' both serve '{name}': set served_model_name")


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
