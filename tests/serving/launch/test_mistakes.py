"""Mistakes that people make in config files: each is refused with its line, its field and, where there is one, the
name that was meant; and what is right is not refused."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from serve_app.errors import BadSettings
from serve_app.serving.launch.config import ServeConfig
from serve_app.serving.launch.document import Document
from tests.serving.launch.conftest import (
    BATCHES,
    DRIVER,
    ENGINE,
    FILES,
    POLICY,
    REPLICA,
    REPLICAS,
    ROOT,
    SCALING,
    Check,
)

# (field, its value, what the message says of it)
MISTAKES: list[tuple[str, Any, str]] = [
    # Serve's own fields, at every level
    ("http_option", {"port": 8000}, "did you mean 'http_options'"),
    ("proxylocation", "HeadOnly", "did you mean 'proxy_location'"),
    ("application", [], "did you mean 'applications'"),
    ("port", 8000, "belongs in 'http_options'"),
    ("proxy_location", "headonly", "did you mean 'HeadOnly'"),
    ("proxy_location", True, "must be one of Disabled, HeadOnly, EveryNode, not true"),
    ("http_options.prot", 8000, "did you mean 'port'"),
    ("http_options.port", "http", "must be a whole number, not 'http'"),
    ("http_options.port", 80000, "must be between 1 and 65535"),
    ("http_options.port", True, "must be a whole number, not true"),
    ("http_options.host", 127, "must be text"),
    ("http_options.host", "127.0.0.256", "is no address of this machine"),
    ("http_options.host", "", "is empty"),
    ("http_options.request_timeout_s", -5, "must be a number of at least 0"),
    ("http_options.keep_alive_timeout", 5, "did you mean 'keep_alive_timeout_s'"),
    ("target_capacity", 120, "must be a number of at most 100"),
    ("applications", {"replicas": {}}, "must be a list, not a mapping"),
    ("logging_config", {"log_lvel": "INFO"}, "did you mean 'log_level'"),
    # applications
    (f"{REPLICAS}.nmae", "x", "did you mean 'name'"),
    (f"{REPLICAS}.name", "replica", "must be 'replicas', not 'replica'"),
    (f"{DRIVER}.name", "population", "must be 'populations'"),
    (f"{BATCHES}.name", "files", r"is 'files', as that of"),
    (f"{DRIVER}.route_prefix", "/", r"is '/', as that of applications\[0\]"),
    (f"{DRIVER}.route_prefix", None, "must be '/v1/populations', where clients look, not empty"),
    (f"{DRIVER}.route_prefix", "v1/populations", "must begin with '/'"),
    (f"{DRIVER}.route_prefix", "/v1/population", "did you mean '/v1/populations'"),
    (f"{REPLICAS}.import_path", "serve_app.serving.apps:replica", "did you mean 'replicas'"),
    (f"{REPLICAS}.import_path", "serve_app.serving.app:replicas", "no module 'app' in serve_app.serving.* 'apps'"),
    (f"{REPLICAS}.import_path", "serve_ap.serving.apps:replicas", "did you mean 'serve_app'"),
    (f"{REPLICAS}.import_path", "apps", "must be of the form 'package.module:name'"),
    (f"{REPLICAS}.import_path", "serve_app.serving.apps:guarded", "has no 'guarded'"),
    (f"{REPLICAS}.arg", {}, "did you mean 'args'"),
    (f"{REPLICAS}.args", ["engine"], "must be a mapping, not a list"),
    (f"{REPLICAS}.deployment", [], "did you mean 'deployments'"),
    (f"{REPLICAS}.deployments", {"Replica": {}}, "must be a list, not a mapping"),
    # deployments
    (f"{REPLICA}", "Replica", "must be a mapping, not 'Replica'"),
    (f"{REPLICA}.name", "Replicas", "did you mean 'Replica'"),
    (f"{FILES}.deployments[0].name", "files", "did you mean 'Files'"),
    (f"{REPLICA}.num_replica", 2, "did you mean 'num_replicas'"),
    (f"{REPLICA}.num_replicas", -2, "must be a whole number of more than 0|-2"),
    (f"{REPLICA}.num_replicas", "two", 'must be an int or "auto"'),
    (f"{REPLICA}.num_replicas", 1.5, "1.5"),
    (f"{REPLICA}.num_replicas", True, "must be a whole number, not true"),
    (f"{REPLICA}.autoscaling_config", SCALING, "num_replicas"),
    (f"{REPLICA}.min_replicas", 1, "in 'autoscaling_config'"),
    (f"{REPLICA}.max_ongoing_requests", 0, "must be a whole number of more than 0"),
    (f"{REPLICA}.graceful_shutdown_timeout", 5, "did you mean 'graceful_shutdown_timeout_s'"),
    (f"{REPLICA}.health_check_period_s", 0, "must be a number of more than 0"),
    (f"{REPLICA}.ray_actor_options.num_cpu", 1, "did you mean 'num_cpus'"),
    (f"{REPLICA}.ray_actor_options.num_cpus", "one", "must be a number, not 'one'"),
    (f"{REPLICA}.ray_actor_options.num_gpus", 1, "fewer than tensor_parallel_size 2"),
    (f"{REPLICA}.user_config", {"a": 1}, "set `args`"),
    (f"{REPLICA}.request_router_config", {"request_router_clas": "x"}, "did you mean 'request_router_class'"),
    (f"{DRIVER}.deployments[0].num_replicas", 2, "must be 1, as one driver owns the jobs"),
    # our settings
    (f"{REPLICAS}.args.engin", {}, "did you mean 'engine'"),
    (f"{REPLICAS}.args.max_model_len", 4096, "belongs in 'engine'"),
    (f"{REPLICAS}.args.sharing", {"online_wait": 50}, "did you mean 'online_wait_ms'"),
    (
        f"{REPLICAS}.args.sharing",
        {"standby_step_tokens": 256},
        "any more; .* set online_wait_ms",
    ),
    (f"{REPLICAS}.args.access", {"key_file": ["k.yaml"]}, "did you mean 'key_files'"),
    (f"{DRIVER}.args.chunk_rows", "many", "must be a whole number, not 'many'"),
    (f"{DRIVER}.args.max_attempts", 0, "must be a whole number of at least 1"),
    (f"{DRIVER}.args.chunk_rows", True, "must be a whole number, not true"),
    (f"{DRIVER}.args.min_rows_per_replica", 5000, "is above max_rows_per_replica"),
    (f"{DRIVER}.args.replicas", "replica", "did you mean 'replicas'"),
    (f"{FILES}.args.store", "elsewhere", "it is not the driver's"),
    (f"{BATCHES}.args.request_timeout", 5, "did you mean 'request_timeout_s'"),
    # vLLM's options
    (f"{ENGINE}.max_num_seq", 4, "did you mean 'max_num_seqs'"),
    (f"{ENGINE}.tensor-parallel-size", 2, "did you mean 'tensor_parallel_size'"),
    (f"{ENGINE}.model", "", "is missing"),
    (f"{ENGINE}.max_model_len", "four thousand", "must be a whole number, not 'four thousand'"),
    (f"{ENGINE}.max_model_len", 1_000_000, "is beyond the model's 8192 positions: use at most 8192"),
    (f"{ENGINE}.max_model_len", 0, "must be a whole number of at least 1"),
    (f"{ENGINE}.kv_cache_memory_bytes", 4 << 20, "hold .* tokens in .*, fewer than one sequence"),
    (f"{ENGINE}.kv_cache_memory_bytes", "512 MiB", "must be a whole number"),
    (f"{ENGINE}.tensor_parallel_size", 0, "must be a whole number of at least 1"),
    (f"{ENGINE}.tensor_parallel_size", 5, "does not divide the model's 12 attention heads"),
    (f"{ENGINE}.gpu_memory_utilization", 90, "must be a number of at most 1"),
    (f"{ENGINE}.dtype", "bflaot16", "did you mean 'bfloat16'"),
    (f"{ENGINE}.enforce_eager", "sometimes", "must be true or false"),
    (f"{ENGINE}.scheduling_policy", "prio", "did you mean 'priority'"),
    (f"{ENGINE}.quantization", "awk", "did you mean 'awq'"),
    (f"{ENGINE}.load_format", "safetensor", "did you mean 'safetensors'"),
    (f"{ENGINE}.tool_call_parser", "hermez", "did you mean 'hermes'"),
    (f"{ENGINE}.tool_call_parser", None, "needs tool_call_parser"),
    (f"{ENGINE}.reasoning_parser", "deepseek-r-1", "did you mean 'deepseek_r1'"),
    (f"{ENGINE}.tool_strict_level", "parameters", "did you mean 'parameter'"),
    (f"{ENGINE}.compilation_config", {"mod": 3}, "did you mean 'mode'"),
    (f"{ENGINE}.speculative_config", {"num_speculative_token": 3}, "did you mean 'num_speculative_tokens'"),
    (f"{ENGINE}.structured_outputs_config", {"backend": "xgramar"}, "did you mean 'xgrammar'"),
    (f"{ENGINE}.lora_modules", [{"name": "a", "pth": "/a"}], "did you mean 'path'"),
    (f"{ENGINE}.lora_modules", ["a=/nowhere"], "there is no folder /nowhere|needs enable_lora"),
    (f"{ENGINE}.chat_template", "/nowhere.jinja", "is no file that is there"),
    (f"{ENGINE}.max_num_batched_tokens", 16, "below max_num_seqs"),
    (f"{ENGINE}.port", 8000, "cannot be set here; use http_options.port"),
]
# What the mistake needs around it.
AROUND: dict[tuple[str, str], list[tuple[str, Any]]] = {
    (f"{ENGINE}.max_num_batched_tokens", "below max_num_seqs"): [(f"{ENGINE}.max_num_seqs", 32)],
}


@pytest.mark.parametrize(("field", "value", "said"), MISTAKES, ids=lambda part: str(part)[-40:])
def test_a_mistake_is_refused_with_its_field_and_what_was_meant(
    check: Check, field: str, value: Any, said: str
) -> None:
    with pytest.raises(BadSettings) as refused:
        check(*AROUND.get((field, said), []), (field, value))
    message = str(refused.value)
    assert re.search(said, message), message
    # The place is that of the field, of what is in it, or of the other field that it does not go with.
    parent = field.rpartition(".")[0]
    assert re.search(rf"config\.yaml:\d+: ({re.escape(field)}|{re.escape(parent)}\.\w+)", message), message


SCALING_MISTAKES: list[tuple[dict[str, Any], str]] = [
    ({"min_replica": 1}, r"autoscaling_config\.min_replica: .*did you mean 'min_replicas'"),
    ({"min_replicas": 4, "max_replicas": 2}, r"autoscaling_config\.max_replicas: .*min_replicas \(4\)"),
    ({"max_replicas": "many"}, r"autoscaling_config\.max_replicas must be a whole number"),
    ({"max_replicas": 0}, r"autoscaling_config\.max_replicas must be a whole number of more than 0"),
    ({"upscale_delay_s": -1}, r"autoscaling_config\.upscale_delay_s must be a number of at least 0"),
    ({"policy": {"policy_functoin": POLICY}}, r"policy\.policy_functoin: .*did you mean 'policy_function'"),
    ({"policy": {"policy_function": f"{POLICY}s"}}, r"policy\.policy_function: .*did you mean 'BacklogPolicy'"),
    ({"policy": {"policy_function": POLICY, "policy_kwargs": {"wish": 1}}}, r"policy_kwargs\.wish: BacklogPolicy has"),
]


@pytest.mark.parametrize(("scaling", "said"), SCALING_MISTAKES, ids=str)
def test_a_mistake_in_autoscaling_is_refused(check: Check, scaling: dict[str, Any], said: str) -> None:
    with pytest.raises(BadSettings, match=said):
        check((f"{REPLICA}.num_replicas", None), (f"{REPLICA}.autoscaling_config", {**SCALING, **scaling}))


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("args.applications[0].name", "shrt", "did you mean 'short'"),
        ("args.applications[0].name", "populations", "'populations' is not an application of replicas"),
        ("args.applications[0].models[0]", "smollm-short", "does not serve .*did you mean 'smollm2-short'"),
        ("args.application", [], "did you mean 'applications'"),
    ],
)
def test_a_mistake_among_several_models_is_refused(check: Check, field: str, value: Any, said: str) -> None:
    with pytest.raises(BadSettings, match=said):
        check((f"applications[2].{field}", value), name="config.two-models.yaml")


def test_all_mistakes_are_said_at_once_in_the_order_of_the_file(tmp_path: Path) -> None:
    text = (ROOT / "config.yaml").read_text()
    for right, wrong in (
        ("HeadOnly", "Headonly"),
        ("num_replicas: 2", "num_replica: 2"),
        ("store: runs", "stor: runs"),
    ):
        text = text.replace(right, wrong, 1)
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(BadSettings) as refused:
        ServeConfig.load(path)
    lines = str(refused.value).splitlines()
    assert [line.split(": ")[1].split()[0] for line in lines] == [
        "proxy_location",
        "applications[0].deployments[0].num_replica",
        "applications[1].args.stor",
    ]
    for line, wrong in zip(lines, ("Headonly", "num_replica:", "stor:"), strict=True):
        at = int(line.removeprefix(f"{path}:").split(":")[0])
        assert wrong in text.splitlines()[at - 1]


def test_a_field_that_is_there_twice_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text("http_options:\n  port: 1\n  host: x\n  port: 2\napplications: []\n")
    with pytest.raises(BadSettings, match=r"config\.yaml:4: http_options\.port is there twice"):
        Document(path)


def test_a_deployment_that_is_there_twice_is_refused(check: Check) -> None:
    with pytest.raises(BadSettings, match=r"deployments\[1\]\.name is 'Replica', as that of another"):
        check((f"{REPLICAS}.deployments", [{"name": "Replica"}, {"name": "Replica"}]))


@pytest.mark.parametrize("text", ["on: 1\napplications: []", "applications: [3]", "applications: [[]]", "{[1]: 2}"])
def test_what_is_no_config_at_all_is_refused_by_name(tmp_path: Path, text: str) -> None:
    (tmp_path / "c.yaml").write_text(text)
    with pytest.raises(BadSettings, match=r"c\.yaml"):
        ServeConfig.load(tmp_path / "c.yaml")
