"""How a config file's applications refer to each other: who works populations and serves which models.

`applications.py` has checked the document: names are unique and settings valid.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from serve_app.engine.options import read_adapter
from serve_app.fields import did_you_mean
from serve_app.mistakes import Mistake
from serve_app.mistakes import Path as Place
from serve_app.serving.launch.applications import builder_of
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


@dataclass(frozen=True, slots=True)
class EngineConfig:
    app: str
    place: Place
    replicas: int  # ready at the start; 0 if a cluster starts empty
    settings: ReplicaSettings
    route_prefix: str = "/"

    @property
    def models(self) -> tuple[str, ...]:
        return served_names(self.settings.engine)


def served_names(options: Mapping[str, Any]) -> tuple[str, ...]:
    """An engine's names for model and adapters. Options may be unchecked."""
    served = options.get("served_model_name") or options.get("model")
    adapters = options.get("lora_modules")
    names = [
        *(served if isinstance(served, list) else [served]),
        *(read_adapter(one).get("name") for one in (adapters if isinstance(adapters, list) else ())),
    ]
    return tuple(name for name in names if isinstance(name, str))


class Applications:
    def __init__(self, document: Mapping[str, Any]) -> None:
        found = document.get("applications")
        self.places: dict[str, Place] = {}
        self._all: dict[str, dict[str, Any]] = {}
        for at, application in enumerate(found if isinstance(found, list) else []):
            if isinstance(application, dict):
                name = str(application.get("name", "default"))
                self.places[name], self._all[name] = ("applications", at), application

    def __getitem__(self, name: str) -> dict[str, Any]:
        return self._all[name]

    def __contains__(self, name: str) -> bool:
        return name in self._all

    def made_by(self, builder: str, name: str) -> str | None:
        """The first made by our builder, else the one with its usual name."""
        made = (one for one, application in self._all.items() if builder_of(application) == builder)
        return next(made, name if name in self._all else None)


def missing_applications(document: Mapping[str, Any]) -> Iterator[Mistake]:
    applications = Applications(document)
    if applications.made_by("populations", DRIVER_APP) is None:
        near = did_you_mean(DRIVER_APP, applications.places)
        yield Mistake(("applications",), f"there is no application named '{DRIVER_APP}'{near}")
    if applications.made_by("models", MODELS_APP) is not None or REPLICAS_APP in applications:
        return
    made = applications.made_by("replicas", REPLICAS_APP)
    if made is None:
        near = did_you_mean(REPLICAS_APP, applications.places)
        yield Mistake(("applications",), f"there is no application named '{REPLICAS_APP}'{near}")
    else:
        yield Mistake((*applications.places[made], "name"), f"must be '{REPLICAS_APP}', not '{made}', where there is "
                      f"no application '{MODELS_APP}' that names others")  # fmt: skip


@dataclass(frozen=True)
class Wiring:
    applications: Applications
    models: ModelsSettings | None
    engines: tuple[EngineConfig, ...]
    driver: DriverSettings
    files: DriverSettings | None
    accesses: tuple[AccessSettings, ...]

    @classmethod
    def of(cls, document: Mapping[str, Any]) -> Wiring:
        applications = Applications(document)

        def settings(builder: str, usual: str) -> Any:
            name = applications.made_by(builder, usual)
            return None if name is None else (applications[name].get("args") or {})

        models_args, files_args = settings("models", MODELS_APP), settings("files", FILES_APP)
        models = None if models_args is None else ModelsSettings.model_validate(models_args)
        names = [REPLICAS_APP] if models is None else [one.name for one in models.applications]
        engines = tuple(
            _engine(name, applications) for name in names if name in applications and _has_engine(applications[name])
        )
        driver = DriverSettings.model_validate(settings("populations", DRIVER_APP))
        files = None if files_args is None else DriverSettings.model_validate(files_args)
        accesses = [driver.access, *(engine.settings.access for engine in engines)]
        accesses += [one.access for one in (files, models) if one is not None]
        if (batches := settings("batches", BATCHES_APP)) is not None:
            accesses.append(AccessSettings.model_validate(batches))
        return cls(applications, models, engines, driver, files, tuple(accesses))

    def mistakes(self) -> Iterator[Mistake]:
        """Names of missing or wrong applications, and settings on which two disagree."""
        names = [engine.app for engine in self.engines]
        if self.models is not None:
            yield from self._of_models(self.models)
        if self.driver.replicas not in names:
            yield Mistake(
                self._args("populations", DRIVER_APP, "replicas"),
                f"'{self.driver.replicas}' is not one of {', '.join(names)}{did_you_mean(self.driver.replicas, names)}",
            )
        if self.files is not None and self.files.store != self.driver.store:
            yield Mistake(
                self._args("files", FILES_APP, "store"),
                f"it is not the driver's, '{self.driver.store}', so batches would not find their files",
            )
        for engine in self.engines:
            yield from _devices(engine, self.applications[engine.app])

    def _args(self, builder: str, usual: str, *field: str | int) -> Place:
        name = self.applications.made_by(builder, usual)
        return (*self.applications.places[str(name)], "args", *field)

    def _of_models(self, models: ModelsSettings) -> Iterator[Mistake]:
        """Missing applications or engines, names an engine lacks or two share."""
        place = self._args("models", MODELS_APP, "applications")
        engines = {engine.app: engine for engine in self.engines}
        for at, one in enumerate(models.applications):
            if one.name not in self.applications:
                near = did_you_mean(one.name, self.applications.places)
                yield Mistake((*place, at, "name"), f"there is no application named '{one.name}'{near}")
            elif one.name not in engines:
                yield Mistake((*place, at, "name"), f"'{one.name}' is not an application of replicas")
        owners: dict[str, str] = {}
        for at, application in enumerate(models.applications):
            if (engine := engines.get(application.name)) is None:
                continue
            for nth, name in enumerate(application.models):
                if name not in engine.models:
                    yield Mistake(
                        (*place, at, "models", nth),
                        f"'{engine.app}' does not serve '{name}' but {', '.join(engine.models)}: correct it there, or "
                        f"set served_model_name{did_you_mean(name, engine.models)}",
                    )
            for name in engine.models:
                if (owner := owners.setdefault(name, engine.app)) != engine.app:
                    yield Mistake(place, f"'{owner}' and '{engine.app}' both serve '{name}': set served_model_name")


def _has_engine(application: Mapping[str, Any]) -> bool:
    return builder_of(application) in ("replicas", "")


def _engine(name: str, applications: Applications) -> EngineConfig:
    application = applications[name]
    settings = ReplicaSettings.model_validate(application.get("args") or {})
    route = application.get("route_prefix", "/")
    return EngineConfig(name, applications.places[name], _replicas(application), settings, route)


def _replica_options(application: Mapping[str, Any]) -> tuple[int, dict[str, Any]]:
    """Path and value of the replicas' options in `deployments`; (0, {}) if absent."""
    for at, deployment in enumerate(application.get("deployments") or []):
        if deployment.get("name") == REPLICA_DEPLOYMENT:
            return at, deployment
    return 0, {}


def _replicas(application: Mapping[str, Any]) -> int:
    _, deployment = _replica_options(application)
    autoscaling = deployment.get("autoscaling_config") or {}
    count = autoscaling.get("initial_replicas")
    if count is None:
        count = autoscaling.get("min_replicas", deployment.get("num_replicas", 1))
    return count if isinstance(count, int) else 1


def _devices(engine: EngineConfig, application: Mapping[str, Any]) -> Iterator[Mistake]:
    """A replica's ranks are its children and see its GPUs."""
    at, deployment = _replica_options(application)
    options = engine.settings.engine
    gpus = (deployment.get("ray_actor_options") or {}).get("num_gpus")
    ranks = options.get("tensor_parallel_size") or 1
    if gpus and isinstance(ranks, int) and ranks > gpus and (options.get("nnodes") or 1) == 1:
        yield Mistake((*engine.place, "deployments", at, "ray_actor_options", "num_gpus"), f"is {gpus:g}, fewer than "
                      f"tensor_parallel_size {ranks}, and a replica needs a GPU for each rank")  # fmt: skip
