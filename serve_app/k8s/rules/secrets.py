"""Rules for secrets: none in plain text or in arguments, where `ps` shows them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence

import yaml

from serve_app.k8s.rules.manifests import Found, Manifest, of_kind, ray_clusters, rule, serve_configs, templates

NAME = re.compile(r"(KEY|TOKEN|PASSWORD|PASSWD|SECRET|CREDENTIALS?)$", re.IGNORECASE)
# Harmless uses of such words.
HARMLESS = re.compile(r"(bos|eos|pad|stop|special|chat)[-_]token|^path_key=", re.IGNORECASE)
SHAPES = re.compile(
    r"\b(hf_[A-Za-z0-9]{8,}|sk-[\w-]{8,}|AKIA[0-9A-Z]{12,}|gh[pousr]_[A-Za-z0-9]{20,}|xox[bp]-[\w-]{10,}"
    r"|eyJ[\w-]{10,}\.[\w-]{10,})|-----BEGIN [A-Z ]*PRIVATE KEY|://[^/\s:@]*:[^/\s:@$]+@|Bearer [\w.-]{6,}"
)
OPTION = re.compile(
    r"--?[\w-]*(api-?key|token|password|passwd|secret|requirepass|credentials?)(?:[= ]+(?P<value>\S+))?$", re.IGNORECASE
)
SHELL = re.compile(
    r"(?:--[\w-]*(?:api-key|password|passwd|secret|requirepass|auth-token|hf-token)|\brequirepass|redis-cli[^|;&]* -a)"
    r"[= ]+[\"']?(?P<value>[^\s\"']+)|\b[A-Z_]*(?:KEY|TOKEN|PASSWORD|SECRET)=[\"']?(?P<set>[^\s\"'$]+)",
    re.IGNORECASE,
)

PROBES = ("liveness", "readiness", "startup")


@rule("secret-inline")
def secret_inline(manifests: Sequence[Manifest]) -> Found:
    for template in templates(manifests):
        for container in template.containers:
            for entry in container.get("env") or []:
                value = str(entry.get("value") or "")
                if value and (NAME.search(entry["name"]) or SHAPES.search(value)):
                    yield template.owner, f"{container['name']}: {entry['name']} is written out; take it from a Secret"
            for field in (f"{name}Probe" for name in PROBES):
                for header in ((container.get(field) or {}).get("httpGet") or {}).get("httpHeaders") or []:
                    if header["name"].lower() in ("authorization", "x-api-key"):
                        yield template.owner, f"{container['name']}: {field} has a key in a header; ask an open route"
            for arguments in _commands(container):
                for message in _in_arguments([str(one) for one in arguments]):
                    yield template.owner, f"{container['name']}: {message}"
    for manifest in manifests:
        if manifest.get("kind") == "Secret":
            yield manifest, "a Secret is committed; make it in the cluster and only name it"
        for place, text in _texts(manifest):
            if SHAPES.search(text):
                yield manifest, f"{place} has a secret written out; take it from a Secret"
    for job in of_kind(manifests, "RayJob"):
        for message in _in_arguments(str(job["spec"].get("entrypoint") or "").split()):
            yield job, f"entrypoint: {message}"
        for name, value in _runtime_variables(job).items():
            if NAME.search(name) and value:
                yield job, f"runtimeEnvYAML: {name} is written out; take it from a Secret"
    for owner, document in serve_configs(manifests):
        for name, leaf in _leaves(document):
            if NAME.search(name) and not HARMLESS.search(name) and isinstance(leaf, str) and leaf:
                yield owner, f"serveConfigV2: {name} is written out; keys are in a mounted file or a variable"
    for owner, cluster in ray_clusters(manifests):
        for entry in (cluster.get("autoscalerOptions") or {}).get("env") or []:
            if entry.get("value") and NAME.search(entry["name"]):
                yield owner, f"autoscaler: {entry['name']} is written out; take it from a Secret"


def _commands(container: Manifest) -> Iterator[list[str]]:
    yield [*(container.get("command") or []), *(container.get("args") or [])]
    hooks = container.get("lifecycle") or {}
    for field in (hooks.get("preStop"), hooks.get("postStart"), *(container.get(f"{n}Probe") for n in PROBES)):
        yield ((field or {}).get("exec") or {}).get("command") or []


def _in_arguments(arguments: list[str]) -> Iterator[str]:
    for index, argument in enumerate(arguments):
        if "\n" in argument or " " in argument.strip():  # a script
            if any(not str(match["value"]).startswith("%") for match in SHELL.finditer(argument)):
                yield "a secret goes by an argument, which `ps` shows; use a variable or a file"
        elif argument == "-a" and "redis-cli" in arguments[:index]:
            yield "-a is an argument, which `ps` shows; redis-cli takes REDISCLI_AUTH"
        elif (option := OPTION.fullmatch(argument)) and not HARMLESS.search(argument):
            following = arguments[index + 1] if index + 1 < len(arguments) else "-"
            if option["value"] or not following.startswith("-"):
                yield f"{argument.partition('=')[0]} is an argument, which `ps` shows; use a variable or a file"
        elif SHAPES.search(argument) or _sets(argument):
            yield "a secret is an argument; take it from a Secret"


def _sets(argument: str) -> bool:
    """Whether it is a variable's assignment, as TOKEN=…."""
    match = SHELL.fullmatch(argument)
    return bool(match and match["set"]) and not HARMLESS.search(argument)


def _texts(manifest: Manifest) -> Iterator[tuple[str, str]]:
    """Every free-text field."""
    for name, text in (manifest.get("data") or {}).items() if manifest.get("kind") == "ConfigMap" else ():
        yield f"data.{name}", str(text)
    if annotations := manifest["metadata"].get("annotations"):
        yield "metadata.annotations", json.dumps(annotations)
    spec = manifest.get("spec") or {}
    for field in ("serveConfigV2", "runtimeEnvYAML", "entrypoint"):
        if text := spec.get(field) if isinstance(spec, dict) else None:
            yield field, str(text)


def _runtime_variables(job: Manifest) -> dict[str, str]:
    try:
        document = yaml.safe_load(job["spec"].get("runtimeEnvYAML") or "{}")
        return document.get("env_vars") or {} if isinstance(document, dict) else {}
    except yaml.YAMLError:
        return {}


def _leaves(node: object, name: str = "") -> Iterator[tuple[str, object]]:
    if isinstance(node, dict):
        for key, value in node.items():
            yield from _leaves(value, str(key))
    elif isinstance(node, list):
        for one in node:
            yield from _leaves(one, name)
    else:
        yield name, node
