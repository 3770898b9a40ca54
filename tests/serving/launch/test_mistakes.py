"""Mistakes that people make in config files: each is refused with its line, its field and, where there is one, the
name that was meant; and what is right is not refused."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from serve_app.errors import BadSettings
from serve_app.k8s.ray_service import yaml_text
from serve_app.k8s.serve_config import serve_config
from serve_app.k8s.values import Values
from serve_app.mistakes import dotted, sharpest
from serve_app.serving.apps import DEPLOYMENTS
from serve_app.serving.launch.applications import document_mistakes
from serve_app.serving.launch.config import ServeConfig, set_store
from serve_app.serving.launch.document import Document

ROOT = Path(__file__).parents[3]
PRESETS = ROOT / "serve_app" / "workloads" / "icm" / "presets"
REPLICAS, DRIVER, FILES, BATCHES = (f"applications[{at}]" for at in range(4))
REPLICA = f"{REPLICAS}.deployments[0]"
ENGINE = f"{REPLICAS}.args.engine"
POLICY = "serve_app.serving.autoscaling:BacklogPolicy"
SCALING = {"min_replicas": 1, "max_replicas": 2}


def put(document: Any, place: str, value: Any) -> None:
    """Set the field at `applications[0].deployments[0].name`."""
    *above, last = [int(part) if part.isdigit() else part for part in re.findall(r"[^.\[\]]+", place)]
    for part in above:
        document = document[part]
    document[last] = value


@pytest.fixture
def check(tmp_path: Path) -> Callable[..., None]:
    """config.yaml with some fields set, checked as `serve-app validate` does."""

    def make(*edits: tuple[str, Any], name: str = "config.yaml") -> None:
        document = yaml.safe_load((ROOT / name).read_text())
        set_store(document, str(tmp_path / "runs"))
        for place, value in edits:
            put(document, place, value)
        path = tmp_path / "config.yaml"
        path.write_text(yaml.safe_dump(document, sort_keys=False))
        ServeConfig.load(path).check(port=False)

    return make


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
    (f"{REPLICAS}.args.sharing.population_step_token", 24, "did you mean 'population_step_tokens'"),
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
    (f"{ENGINE}.kv_cache_memory_bytes", 4 << 20, "holds .* tokens, fewer than one sequence"),
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
    check: Callable[..., None], field: str, value: Any, said: str
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
def test_a_mistake_in_autoscaling_is_refused(check: Callable[..., None], scaling: dict[str, Any], said: str) -> None:
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
def test_a_mistake_among_several_models_is_refused(
    check: Callable[..., None], field: str, value: Any, said: str
) -> None:
    with pytest.raises(BadSettings, match=said):
        check((f"applications[2].{field}", value), name="config.two-models.yaml")


def fields(document: Any, above: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    for part, value in document.items() if isinstance(document, dict) else enumerate(document):
        yield (*above, part)
        if isinstance(value, dict | list):
            yield from fields(value, (*above, part))


def test_every_field_of_the_shipped_files_is_named_where_it_is_misspelt() -> None:
    tried = 0
    for name in ("config.yaml", "config.gpu.yaml", "config.two-models.yaml"):
        document = yaml.safe_load((ROOT / name).read_text())
        for *above, field in list(fields(document)):
            if isinstance(field, int) or "engine" in above:  # vLLM's are another test's
                continue
            at = document
            for part in above:
                at = at[part]
            wrong = field[:-1]
            at[wrong] = at.pop(field)
            found = {str(one) for one in document_mistakes(document)}
            said = f"{dotted((*above, wrong))}: there is no field of this name"
            assert [one for one in found if one.startswith(said) and f"'{field}'" in one], found
            at[field] = at.pop(wrong)
            tried += 1
        assert list(document_mistakes(document)) == []
    assert tried > 80


GARBAGE: tuple[Any, ...] = (None, True, -3, 1.5, "x", "", [], {}, [None], {"a": 1}, 10**30)


def test_no_value_of_any_field_is_a_traceback() -> None:
    """Whatever stands there: a mistake, or what is right."""
    document = yaml.safe_load((ROOT / "config.two-models.yaml").read_text())
    for *above, field in list(fields(document)):
        at = document
        for part in above:
            at = at[part]
        right = at[field]
        for at[field] in GARBAGE:
            assert not any("cannot be read" in one.problem for one in sharpest(document_mistakes(document)))
        at[field] = right


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


def test_a_deployment_that_is_there_twice_is_refused(check: Callable[..., None]) -> None:
    with pytest.raises(BadSettings, match=r"deployments\[1\]\.name is 'Replica', as that of another"):
        check((f"{REPLICAS}.deployments", [{"name": "Replica"}, {"name": "Replica"}]))


@pytest.mark.parametrize("text", ["on: 1\napplications: []", "applications: [3]", "applications: [[]]", "{[1]: 2}"])
def test_what_is_no_config_at_all_is_refused_by_name(tmp_path: Path, text: str) -> None:
    (tmp_path / "c.yaml").write_text(text)
    with pytest.raises(BadSettings, match=r"c\.yaml"):
        ServeConfig.load(tmp_path / "c.yaml")


# What is right, and unusual


@pytest.mark.parametrize("name", ["config.yaml", "config.gpu.yaml", "config.two-models.yaml", "serve_app/config.yaml"])
def test_the_shipped_files_have_no_mistakes(name: str) -> None:
    ServeConfig.load(ROOT / name)


@pytest.mark.parametrize("preset", sorted(Values.load(ROOT / "k8s" / "values.yaml").presets))
def test_every_rendering_for_kubernetes_has_no_mistakes(preset: str, tmp_path: Path) -> None:
    values = Values.load(ROOT / "k8s" / "values.yaml")
    path = tmp_path / f"{preset}.yaml"
    path.write_text(yaml_text(serve_config(values, values.preset(preset), ROOT)))
    loaded = ServeConfig.load(path)
    assert loaded.engines


@pytest.mark.parametrize(
    "preset", sorted((ROOT / "serve_app/workloads/icm/presets").glob("*.yaml")), ids=lambda p: p.stem
)
def test_every_packaged_preset_has_no_mistakes(preset: Path) -> None:
    ServeConfig.load(preset)


RIGHT: list[list[tuple[str, Any]]] = [
    [(f"{REPLICA}.num_replicas", "auto")],
    [(f"{REPLICA}.num_replicas", None), (f"{REPLICA}.autoscaling_config", SCALING)],
    [(f"{REPLICA}.num_replicas", None), (f"{REPLICA}.autoscaling_config",
     SCALING | {"min_replicas": 0, "policy": {"policy_function": POLICY.replace(":", ".")}})],
    [(f"{REPLICA}.ray_actor_options", {"num_cpus": 0.5, "resources": {"x": 1}, "label_selector": {"a": "b"}})],
    [(f"{REPLICA}.logging_config", {"log_level": "DEBUG"})],
    [(f"{REPLICAS}.runtime_env", {"env_vars": {"A": "b"}})],
    [("http_options.request_timeout_s", 30)],
    [(f"{ENGINE}.max_model_len", 8192)],
    [(f"{ENGINE}.max_model_len", -1)],
    [(f"{ENGINE}.served_model_name", ["a", "b"])],
    [(f"{ENGINE}.dtype", "float32")],
    [(f"{ENGINE}.compilation_config", {"mode": 3, "cudagraph_mode": "PIECEWISE", "pass_config": {}})],
    [(f"{ENGINE}.speculative_config", {"method": "ngram", "num_speculative_tokens": 3, "prompt_lookup_max": 4})],
    [(f"{ENGINE}.chat_template", "{{ messages[0].content }}")],
    [(f"{ENGINE}.override_generation_config", {"temperature": 0.1})],
    [(f"{ENGINE}.hf_overrides", {"max_position_embeddings": 16384}), (f"{ENGINE}.max_model_len", 16384)],
]  # fmt: skip


@pytest.mark.parametrize("edits", RIGHT, ids=lambda edits: str(edits[-1])[-50:])
def test_what_is_right_is_accepted(check: Callable[..., None], edits: list[tuple[str, Any]]) -> None:
    check(*edits)


def test_somebody_elses_application_beside_ours_is_accepted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "echo_of_mine.py").write_text(
        "from ray import serve\n\n@serve.deployment\nclass Echo:\n    pass\n\napp = Echo.bind()\n\n"
        "def build(args: dict):\n    return app\n"
    )
    monkeypatch.chdir(tmp_path)
    document = yaml.safe_load((ROOT / "config.yaml").read_text())
    own = [{"name": one, "route_prefix": f"/{one}", "import_path": f"echo_of_mine:{one}"} for one in ("app", "build")]
    document["applications"] += own
    assert list(document_mistakes(document)) == []
    own[0]["import_path"] = "echo_of_mine:ap"
    (mistake,) = document_mistakes(document)
    assert str(mistake) == "applications[4].import_path: echo_of_mine has no 'ap'; did you mean 'app'?"


def test_deployments_that_may_be_named_are_those_that_the_builders_make() -> None:
    from serve_app.serving import apps
    from serve_app.settings import AccessSettings, DriverSettings, ModelsSettings, ReplicaSettings, SimulatedSettings

    settings: dict[str, Any] = {
        "replicas": ReplicaSettings(simulated=SimulatedSettings()),
        "populations": DriverSettings(),
        "files": DriverSettings(),
        "batches": AccessSettings(),
        "models": ModelsSettings(applications=({"name": "a"},)),
    }
    for builder, names in DEPLOYMENTS.items():
        deployment = getattr(apps, builder)(settings[builder])._bound_deployment
        assert (deployment.name,) == names
        # So that `user_config` is refused for a reason.
        assert not hasattr(deployment.func_or_class, "reconfigure")
