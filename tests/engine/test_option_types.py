"""Types of vLLM's options as its source has them, and as vLLM itself does."""

from __future__ import annotations

from typing import Any, Literal, get_args, get_origin

import pytest

from serve_app.engine.option_types import config_model, dict_keys, option_fields, option_type
from serve_app.engine.options import OPTION_CLASSES, REGISTERED, option_mistakes


def kind_and_limits(name: str) -> tuple[Any, list[str]]:
    fields = {key: one for pair in OPTION_CLASSES.values() for key, one in option_fields(*pair).items()}
    kind, field = option_type(*fields[name])
    return kind, [str(one) for one in field.metadata]


def test_types_and_limits_follow_defaults_to_where_they_come_from() -> None:
    assert kind_and_limits("tensor_parallel_size") == (int, ["Ge(ge=1)"])
    assert kind_and_limits("max_num_seqs") == (int | None, ["Ge(ge=1)"])  # None here, limited in SchedulerConfig
    assert kind_and_limits("max_model_len") == (int | None, ["Ge(ge=-1)"])  # annotated as int, and None by default
    assert kind_and_limits("gpu_memory_utilization") == (float, ["Gt(gt=0)", "Le(le=1)"])
    assert kind_and_limits("scheduling_policy")[0] == Literal["fcfs", "priority"]
    assert kind_and_limits("served_model_name")[0] == str | list[str] | None


def test_every_option_has_a_type() -> None:
    for module, classes in OPTION_CLASSES.values():
        for name, (field, where) in option_fields(module, classes).items():
            assert option_type(field, where)[0] is not None, name


def test_a_class_that_is_not_there_is_no_model() -> None:
    assert config_model("vllm.config", "NothingOfThatName") is None
    assert dict_keys("vllm.tool_parsers", "NOTHING") == []


def test_options_that_go_together_only() -> None:
    def said(**options: Any) -> list[str]:
        return [str(one) for one in option_mistakes({"model": "m", **options})]

    assert said(enable_auto_tool_choice=True) == ["enable_auto_tool_choice needs tool_call_parser, which is not set"]
    assert said(enable_auto_tool_choice=True, tool_call_parser="hermes") == []
    (plugin,) = said(tool_call_parser="mine", tool_parser_plugin="/nowhere.py")
    assert plugin == "tool_parser_plugin: there is no file /nowhere.py"
    (both,) = said(max_num_batched_tokens=512, max_model_len=1024, enable_chunked_prefill=False)
    assert both.startswith("max_num_batched_tokens is 512, below max_model_len 1024")


@pytest.mark.engine
def test_vllms_own_defaults_are_accepted() -> None:
    import dataclasses
    import json

    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.entrypoints.launchers.cli_args import FrontendArgs

    tried = 0
    for field in [*dataclasses.fields(AsyncEngineArgs), *dataclasses.fields(FrontendArgs)]:
        default = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
        try:
            json.dumps(default)
        except TypeError:  # no config file can say it
            continue
        if field.name in ("port", "host", "uds", "api_key", "distributed_executor_backend", "model"):
            continue
        if not field.name.startswith("_"):
            tried += 1
            assert option_mistakes({"model": "m", field.name: default}) == [], field.name
    assert tried > 200


@pytest.mark.engine
def test_choices_and_nested_fields_are_those_that_vllm_has() -> None:
    import dataclasses
    import importlib

    import vllm.config
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.model_executor.layers.quantization import QUANTIZATION_METHODS
    from vllm.model_executor.model_loader import _LOAD_FORMAT_TO_MODEL_LOADER

    def choices(name: str) -> set[str]:
        kind, _ = kind_and_limits(name)
        literals = [one for one in (kind, *get_args(kind)) if get_origin(one) is Literal]
        return {value for one in literals for value in get_args(one)}

    assert choices("load_format") == _LOAD_FORMAT_TO_MODEL_LOADER.keys()
    assert choices("quantization") == {*QUANTIZATION_METHODS}
    for module, table, _ in REGISTERED.values():
        assert dict_keys(module, table) == [*getattr(importlib.import_module(module), table)]
    seen = 0
    for name in dir(vllm.config):
        model = config_model("vllm.config", name) if name.endswith("Config") else None
        if model is not None:
            seen += 1
            theirs = {one.name for one in dataclasses.fields(getattr(vllm.config, name)) if one.init}
            assert {one for one in theirs if not one.startswith("_")} <= model.model_fields.keys(), name
    assert seen > 15
    assert AsyncEngineArgs is not None
