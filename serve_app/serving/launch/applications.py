"""Finds mistakes in a Serve config document: by Serve's schema, import paths and our settings.

Serve ignores unknown fields, and finds wrong import paths, deployments and arguments only on a running cluster.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator, Mapping
from copy import deepcopy
from typing import Any

from pydantic import BaseModel
from ray.serve import Application
from ray.serve.schema import ServeDeploySchema

from serve_app.engine.options import known_options
from serve_app.errors import BadSettings
from serve_app.fields import did_you_mean
from serve_app.mistakes import Mistake, Path, mistakes, shown
from serve_app.serving.apps import DEPLOYMENTS
from serve_app.serving.launch.imports import NotImportable, load, unknown_arguments
from serve_app.settings import DRIVER_APP, DRIVER_DEPLOYMENT, ReplicaSettings

OURS = "serve_app.serving.apps"
# Our builders' routes below the base URL.
ROUTES = {"populations": "/v1/populations", "files": "/v1/files", "batches": "/v1/batches"}
# Serve's fields that name an import: the field of its arguments.
IMPORTED = {"policy_function": "policy_kwargs", "request_router_class": "request_router_kwargs"}
PORTS = range(1, 65536)


def builder_of(application: Mapping[str, Any]) -> str:
    """The name of our builder of an application, else ""."""
    module, _, name = str(application.get("import_path")).replace(":", ".").rpartition(".")
    return name if module == OURS else ""


def document_mistakes(document: Mapping[str, Any]) -> Iterator[Mistake]:
    applications = document.get("applications")
    pairs: list[tuple[Path, dict[str, Any]]] = [
        (("applications", at), one)
        for at, one in enumerate(applications if isinstance(applications, list) else [])
        if isinstance(one, dict)
    ]
    twice = [*_twice(pairs, "name", "default"), *_twice(pairs, "route_prefix", "/")]
    imported = [one for path, application in pairs for one in _imported(path, application)]
    yield from (*twice, *imported)
    # Serve's errors about all applications are duplicates, reported elsewhere.
    found = mistakes(ServeDeploySchema, _without(document, imported))
    yield from (one for one in found if not (twice and one.path == ("applications",)))
    yield from _addresses(document)
    for path, application in pairs:
        yield from _application(path, application)


def _without(document: Mapping[str, Any], found: Iterable[Mistake]) -> dict[str, Any]:
    """A copy without the wrong fields: Serve's models import what they name."""
    copy: Any = deepcopy(dict(document))
    for one in found:
        field: Any = copy
        for part in one.path[:-1]:
            field = field[part]
        field.pop(one.path[-1], None)
    return dict(copy)


def _twice(pairs: list[tuple[Path, dict[str, Any]]], field: str, default: str) -> Iterator[Mistake]:
    first: dict[str, Path] = {}
    for path, application in pairs:
        value = application.get(field, default)
        if not isinstance(value, str):
            continue
        if value in first:
            owner = f"applications[{first[value][-1]}]"
            what = f"is '{value}', as that of {owner}"
            if field not in application:
                what = f"is not given, which means '{value}', as that of {owner}"
            yield Mistake((*path, field), f"{what}: give each application its own")
        first.setdefault(value, path)


def _addresses(document: Mapping[str, Any]) -> Iterator[Mistake]:
    for name in ("http_options", "grpc_options"):
        options = document.get(name)
        for field, value in options.items() if isinstance(options, dict) else ():
            if field == "host" and value == "":
                yield Mistake((name, field), "is empty: 127.0.0.1 is this machine alone, 0.0.0.0 every address of it")
            if isinstance(value, bool) or not isinstance(value, int | float):
                continue
            if field == "port" and value not in PORTS:
                yield Mistake((name, field), f"must be between {PORTS[0]} and {PORTS[-1]}, not {value}")
            elif str(field).endswith("_s") and value < 0:
                yield Mistake((name, field), f"must be a number of at least 0, not {value}")
    http = document.get("http_options")
    if isinstance(http, dict) and http.get("ssl_keyfile") and not http.get("ssl_certfile"):
        # Serve finds the other one missing, and takes no notice of this one.
        yield Mistake(("http_options", "ssl_keyfile"), "needs ssl_certfile beside it: without it the server has no TLS")


def _application(path: Path, application: dict[str, Any]) -> Iterator[Mistake]:
    yield from _route(path, application)
    builder = builder_of(application)
    names = DEPLOYMENTS.get(builder, ())
    deployments = application.get("deployments")
    if isinstance(deployments, list):
        pairs = [((*path, "deployments", at), one) for at, one in enumerate(deployments) if isinstance(one, dict)]
        yield from _deployment_names(pairs, names, builder)
        for place, deployment in pairs:
            if deployment.get("name") == DRIVER_DEPLOYMENT and names:
                yield from _one_driver(place, deployment)
            if names and deployment.get("user_config") is not None:
                yield Mistake((*place, "user_config"), "is nothing that deployments of this package read; set `args`")
    if builder == "populations" and isinstance(name := application.get("name", "default"), str) and name != DRIVER_APP:
        yield Mistake((*path, "name"), f"must be '{DRIVER_APP}', by which clients and batches find the driver, "
                      f"not '{name}'")  # fmt: skip
    if isinstance(import_path := application.get("import_path"), str) and not application.get("runtime_env"):
        yield from _made_by(path, import_path, application.get("args"))


def _route(path: Path, application: dict[str, Any]) -> Iterator[Mistake]:
    route, usual = application.get("route_prefix", "/"), ROUTES.get(builder_of(application))
    here = (*path, "route_prefix")
    if route is None and usual:
        yield Mistake(here, f"must be '{usual}', where clients look, not empty")
    if not isinstance(route, str):
        return
    if not route.startswith("/") or (len(route) > 1 and route.endswith("/")) or {"{", "}"} & {*route}:
        yield Mistake(here, f"must begin with '/', not end with one and hold no braces, not '{route}'")
    elif usual and not route.endswith(usual):
        yield Mistake(here, f"must be '{usual}', where clients look, not '{route}'{did_you_mean(route, [usual])}")


def _deployment_names(
    pairs: list[tuple[Path, dict[str, Any]]], known: Iterable[str], builder: str
) -> Iterator[Mistake]:
    seen: set[str] = set()
    for path, deployment in pairs:
        name = deployment.get("name")
        if not isinstance(name, str):
            continue
        if known and name not in known:
            near = did_you_mean(name, known)
            problem = f"there is no deployment '{name}' in {OURS}:{builder}, but {', '.join(known)}"
            yield Mistake((*path, "name"), f"{problem}{near}")
        if name in seen:
            yield Mistake((*path, "name"), f"is '{name}', as that of another deployment; the first would be ignored")
        seen.add(name)


def _one_driver(path: Path, deployment: dict[str, Any]) -> Iterator[Mistake]:
    if deployment.get("num_replicas") not in (None, 1):
        yield Mistake((*path, "num_replicas"), f"must be 1, as one driver owns the jobs, not "
                      f"{shown(deployment['num_replicas'])}; for more processes set args.max_runners")  # fmt: skip
    if deployment.get("autoscaling_config"):
        yield Mistake((*path, "autoscaling_config"), "cannot be set for the driver: one owns the jobs")


def _imported(path: Path, fields: Any) -> Iterator[Mistake]:
    """That policies and routers, anywhere below, can be imported and take their arguments."""
    if isinstance(fields, list):
        for at, one in enumerate(fields):
            yield from _imported((*path, at), one)
    for name, value in fields.items() if isinstance(fields, dict) else ():
        here = (*path, name)
        if name not in IMPORTED or not isinstance(value, str):
            yield from _imported(here, value)
            continue
        try:
            target = load(value)
        except NotImportable as error:
            yield Mistake(here, str(error))
            continue
        given = fields.get(IMPORTED[name])
        target = getattr(target, "initialize_state", target)
        for argument, problem in unknown_arguments(target, given if isinstance(given, dict) else {}):
            yield Mistake((*path, IMPORTED[name], argument), problem)


def _made_by(path: Path, import_path: str, args: Any) -> Iterator[Mistake]:
    """An Application, or a function that makes one of `args`."""
    here = (*path, "import_path")
    try:
        target = load(import_path, only=DEPLOYMENTS if import_path.startswith(OURS) else ())
    except NotImportable as error:
        yield Mistake(here, str(error))
        return
    if isinstance(target, Application):
        if args:
            yield Mistake((*path, "args"), f"is given, and {import_path} is an application already, which takes none")
        return
    if not inspect.isroutine(target):
        yield Mistake(here, f"{import_path} is neither an application nor a function that makes one")
        return
    model = _settings_model(target)
    if model is not None and (args is None or isinstance(args, dict)):
        yield from (_of_engine(one, model, (*path, "args")) for one in mistakes(model, args or {}, (*path, "args")))


def _settings_model(builder: Any) -> type[BaseModel] | None:
    """The annotation of a builder's first parameter, if a model: what Serve makes of `args`."""
    try:
        parameters = [*inspect.signature(builder, eval_str=True).parameters.values()]
    except (NameError, TypeError, ValueError):
        return None
    kind = parameters[0].annotation if parameters else None
    return kind if inspect.isclass(kind) and issubclass(kind, BaseModel) else None


def _of_engine(mistake: Mistake, model: type[BaseModel], path: Path) -> Mistake:
    """Report a vLLM option beside `engine` that belongs inside."""
    name = str(mistake.path[-1]) if mistake.path else ""
    if model is not ReplicaSettings or mistake.path != (*path, name) or name in model.model_fields:
        return mistake
    try:
        known = known_options()
    except BadSettings:
        return mistake
    return Mistake(mistake.path, "is an option of vLLM: it belongs in 'engine'") if name in known else mistake
