"""The adapter's own logic, without starting vLLM."""

import os
from pathlib import Path
from typing import Any

import pytest
import yaml

from serve_app.engine import running
from serve_app.engine import vllm as adapter
from serve_app.engine.launch import split_options
from serve_app.engine.vllm import VLLMEngine
from serve_app.errors import BadSettings, NotEnoughMemory
from serve_app.models.default import NAME
from serve_app.settings import HealthSettings

ROOT = Path(__file__).parents[2]


def prepared(config: str, monkeypatch: pytest.MonkeyPatch, *, cpu: bool, assigned_cpus: float = 1) -> dict[str, Any]:
    monkeypatch.setattr(adapter, "on_cpu", lambda: cpu)
    # Not inherited from a host that sets it, and given back after the test.
    monkeypatch.setenv("VLLM_CPU_OMP_THREADS_BIND", "")
    monkeypatch.delenv("VLLM_CPU_OMP_THREADS_BIND")
    options = yaml.safe_load((ROOT / config).read_text())["applications"][0]["args"]["engine"]
    engine = VLLMEngine(options, HealthSettings(), assigned_cpus=assigned_cpus, replicas=2)
    return engine._prepare_options()


def test_on_gpus_the_engine_gets_the_settings_and_nothing_for_cpus(monkeypatch: pytest.MonkeyPatch) -> None:
    options = prepared("config.gpu.yaml", monkeypatch, cpu=False)
    assert options["tensor_parallel_size"] == 2
    # Unset, vLLM would choose ray inside Serve's placement.
    assert options["distributed_executor_backend"] == "mp"
    assert options["gpu_memory_utilization"] == 0.90
    assert not {"kv_cache_memory_bytes", "block_size", "enforce_eager"} & options.keys()
    assert "VLLM_CPU_OMP_THREADS_BIND" not in os.environ


def test_on_cpus_the_engine_gets_blocks_of_32_kv_space_and_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    options = prepared("config.yaml", monkeypatch, cpu=True)
    assert options["block_size"] == 32
    assert options["kv_cache_memory_bytes"] == 512 << 20
    assert options["served_model_name"] == [NAME]
    assert Path(options["model"]).is_dir()
    assert len(os.environ["VLLM_CPU_OMP_THREADS_BIND"].split("|")) == 2


def test_a_replica_that_does_not_fit_says_so_before_vllm_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adapter, "memory_bytes", lambda: (1 << 30, 1 << 30))
    with pytest.raises(NotEnoughMemory, match="2 workers need"):
        prepared("config.yaml", monkeypatch, cpu=True)


def test_heads_that_do_not_divide_are_refused_before_vllm_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adapter, "on_cpu", lambda: False)
    engine = VLLMEngine({"model": NAME, "tensor_parallel_size": 8}, HealthSettings())
    with pytest.raises(BadSettings, match="does not divide the model's 12"):
        engine._prepare_options()


def test_options_go_where_they_belong() -> None:
    engine, front_end = split_options({"model": "m", "max_num_seqs": 4, "enable_prompt_tokens_details": True})
    assert engine == {"model": "m", "max_num_seqs": 4}
    assert front_end == {"enable_prompt_tokens_details": True}


@pytest.mark.engine
@pytest.mark.parametrize("error", [UnicodeEncodeError("utf-8", "\ud800", 0, 1, "surrogate"), OverflowError()])
async def test_what_cannot_be_sent_to_the_engine_is_refused_and_forgotten(error: Exception) -> None:
    from vllm.exceptions import VLLMClientError

    class Engine:
        aborted: list[str] = []  # noqa: RUF012  # one test's own class

        async def add_request(self, request_id: str, prompt: Any) -> None:
            raise error

        async def abort(self, request_id: str) -> None:
            self.aborted.append(request_id)

    engine = Engine()
    running.refuse_unsendable(engine)
    with pytest.raises(VLLMClientError, match="cannot be understood"):
        await engine.add_request("one", prompt={})
    assert engine.aborted == ["one"]
