"""Checks options for vLLM without importing it, which takes about 9 s.

Names, types, limits and choices are read from the installed source (`option_types.py`).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any, Union

from pydantic import BaseModel, ConfigDict, Field, create_model

from serve_app.engine.option_types import Module, config_model, dict_keys, option_fields, option_type
from serve_app.errors import BadSettings, UnknownOption
from serve_app.fields import did_you_mean
from serve_app.mistakes import Mistake, dotted, mistakes, unknown_choice

# vLLM 0.32's option classes; `tests/engine/test_vllm_api.py` fails when they move. The front end also gets the engine's
# options; the engine owns shared names.
OPTION_CLASSES = {
    "front end": ("vllm.entrypoints.launchers.cli_args", ("BaseFrontendArgs", "FrontendArgs")),
    "engine": ("vllm.engine.arg_utils", ("EngineArgs", "AsyncEngineArgs")),
}
# Names registered on import, which plugins may extend: option -> module, dict, the plugin's option.
REGISTERED = {
    "tool_call_parser": ("vllm.tool_parsers", "_TOOL_PARSERS_TO_REGISTER", "tool_parser_plugin"),
    "reasoning_parser": ("vllm.reasoning", "_REASONING_PARSERS_TO_REGISTER", "reasoning_parser_plugin"),
}
# Serve owns the address, number of front ends and process model.
OWNED = {
    "host": "http_options.host in config.yaml",
    "port": "http_options.port in config.yaml",
    "uds": "http_options in config.yaml",
    "api_key": "an authenticating proxy in front: the key would not cover /v1/populations",
    "distributed_executor_backend": "nothing: the replica always uses the multiprocessing executor ('mp')",
}
# Ray's dashboard and vLLM's log show a config file's values.
SECRETS = {"hf_token": "HF_TOKEN"}
# Options that need another one to work.
NEEDS = {
    "enable_auto_tool_choice": "tool_call_parser",
    "lora_modules": "enable_lora",
    "enable_log_outputs": "enable_log_requests",
}
# As vLLM tells a template from a file's name.
JINJA = "{}\n"


def known_options() -> dict[str, str]:
    """Map each option's name to its kind, 'engine' or 'front end'.

    Raises BadSettings when vLLM is not installed.
    """
    return {name: kind for name, (kind, _, _) in _options().items()}


@cache
def _options() -> dict[str, tuple[str, Any, Module]]:
    try:
        return {
            name: (kind, *found)
            for kind, (module, classes) in OPTION_CLASSES.items()
            for name, found in option_fields(module, classes).items()
        }
    except ModuleNotFoundError as error:
        raise BadSettings(
            "vLLM is not installed: run `make setup`, or set `simulated` to run without an engine"
        ) from error


def check_options(options: Mapping[str, Any]) -> None:
    """Raise UnknownOption with the nearest match, or BadSettings, if vLLM cannot take `options`."""
    if found := option_mistakes(options):
        kind = UnknownOption if any(name not in known_options() for name in options) else BadSettings
        below = [one.below(("engine",)) for one in found]
        error = kind("; ".join(map(str, below)))
        error.field = dotted(below[0].path)
        raise error


def option_mistakes(options: Mapping[str, Any]) -> list[Mistake]:
    """All mistakes in `options`, each by name. Raises BadSettings when vLLM is not installed."""
    known = known_options()
    found = [
        Mistake((name,), f"vLLM has no option of that name{did_you_mean(name, known) or _HELP}")
        for name in options
        if name not in known
    ]
    found += [
        Mistake((name,), f"cannot be set here; use {OWNED[name]}")
        for name, value in options.items()
        if name in OWNED and value != "mp"
    ]
    found += [
        Mistake((name,), f"is a secret, which logs would show: give it by the environment variable {variable}")
        for name, variable in SECRETS.items()
        if isinstance(options.get(name), str)
    ]
    if not options.get("model"):
        found.append(Mistake(("model",), "is missing: give a prepared model's name, a folder or a hub name"))
    given = {name: value for name, value in options.items() if name in known and name not in OWNED}
    found += mistakes(_model_of(given), given)
    wrong = {one.path[0] for one in found}
    fine = {name: value for name, value in given.items() if name not in wrong}
    return [*found, *_unregistered(fine), *_alone(fine, given), *_sizes(fine), *_files(fine)]


_HELP = "; see `vllm serve --help` for the names"


def _model_of(names: Mapping[str, Any]) -> type[BaseModel]:
    """A model of the given options only, since reading all takes most of a second."""
    fields: dict[str, Any] = {}
    for name in names:
        _, field, module = _options()[name]
        kind, limits = option_type(field, module)
        fields[name] = (kind, limits)
    if "lora_modules" in fields:  # the front end also takes `name=path`
        adapter: Any = config_model("vllm.entrypoints.openai.models.protocol", "LoRAModulePath")
        fields["lora_modules"] = (list[Union[str, adapter]] | None, None)  # noqa: UP007  # a type that is a variable
    for name, (kind, limits) in fields.items():
        if name.endswith("_config") and kind == dict[str, Any] | None:
            inner = config_model("vllm.config", "".join(part.capitalize() for part in name.split("_")))
            fields[name] = (kind if inner is None else inner | None, limits)
    if "kv_cache_memory_bytes" in fields:
        fields["kv_cache_memory_bytes"] = (int | None, Field(None, ge=1))
    config = ConfigDict(extra="forbid", strict=True, protected_namespaces=())
    return create_model("EngineOptions", __config__=config, **fields)


def _unregistered(options: Mapping[str, Any]) -> Iterator[Mistake]:
    places: list[tuple[tuple[str, ...], Any]] = [((name,), options.get(name)) for name in REGISTERED]
    if isinstance(nested := options.get("structured_outputs_config"), dict):
        places.append((("structured_outputs_config", "reasoning_parser"), nested.get("reasoning_parser")))
    for path, value in places:
        module, table, plugin = REGISTERED[path[-1]]
        known = dict_keys(module, table)
        if value and known and value not in known and not options.get(plugin):
            yield Mistake(path, f"{unknown_choice(value, known)} (a parser of your own needs {plugin})")


def _alone(fine: Mapping[str, Any], given: Mapping[str, Any]) -> Iterator[Mistake]:
    for name, other in NEEDS.items():
        if fine.get(name) and not given.get(other):
            yield Mistake((name,), f"needs {other}, which is not set")


def _sizes(options: Mapping[str, Any]) -> Iterator[Mistake]:
    length, tokens = options.get("max_model_len"), options.get("max_num_batched_tokens")
    if length == 0:
        yield Mistake(("max_model_len",), "must be a whole number of at least 1, or -1 for what fits, not 0")
    if tokens is None:
        return
    if tokens < (options.get("max_num_seqs") or 0):
        yield Mistake(("max_num_batched_tokens",), f"is {tokens}, below max_num_seqs {options['max_num_seqs']}")
    if options.get("enable_chunked_prefill") is False and tokens < (length or 0):
        yield Mistake(("max_num_batched_tokens",), f"is {tokens}, below max_model_len {length}: without chunked "
                      "prefill a prompt goes into one step")  # fmt: skip


def _files(options: Mapping[str, Any]) -> Iterator[Mistake]:
    for name in ("tool_parser_plugin", "reasoning_parser_plugin"):
        if (file := options.get(name)) and not Path(file).is_file():
            yield Mistake((name,), f"there is no file {file}")
    template = options.get("chat_template")
    if template and not is_template(template) and not Path(template).is_file():
        yield Mistake(("chat_template",), f"{template} is no file that is there, and no template")
    for at, adapter in enumerate(options.get("lora_modules") or ()):
        path = str(read_adapter(adapter).get("path", ""))
        if path.startswith(("/", "./", "../", "~")) and not Path(path).expanduser().is_dir():
            yield Mistake(("lora_modules", at), f"there is no folder {path}")


def is_template(given: str) -> bool:
    """Whether a `chat_template` is the text itself, and no file."""
    return any(mark in given for mark in JINJA)


def read_adapter(entry: Any) -> Mapping[str, Any]:
    """`name` and `path` of an entry of `lora_modules`, as vLLM reads a mapping, `name=path` or a mapping's JSON; empty
    for anything else. Entries may be unchecked.
    """
    if isinstance(entry, str):
        if "=" in entry and "," not in entry:
            name, _, path = entry.partition("=")
            return {"name": name, "path": path}
        try:
            entry = json.loads(entry)
        except ValueError:
            return {}
    return entry if isinstance(entry, Mapping) else {}
