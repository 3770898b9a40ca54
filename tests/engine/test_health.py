"""Health against a stand-in for AsyncLLM: the adapter's reaction to an engine that dies or stands still."""

import asyncio
import subprocess
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from serve_app.engine.vllm import VLLMEngine
from serve_app.errors import EngineFailed
from serve_app.settings import HealthSettings


class Still:
    """Takes requests and never answers."""

    errored = False

    async def generate(self, *args: Any, **kwargs: Any) -> Any:
        await asyncio.sleep(60)
        yield None


def engine(client: Any) -> VLLMEngine:
    built = VLLMEngine({"model": "m"}, HealthSettings(stall_timeout_s=0.5))
    built._engine = client
    return built


@pytest.mark.engine
async def test_an_engine_that_makes_no_step_is_unhealthy() -> None:
    with pytest.raises(EngineFailed, match=r"no step in 0\.5 s"):
        await engine(Still()).check_health()


class Embedder:
    """Does not generate."""

    errored = False

    def __init__(self) -> None:
        self.asked: list[str] = []

    async def get_supported_tasks(self) -> tuple[str, ...]:
        return "token_embed", "embed"

    async def encode(self, prompt: Any, params: Any, request_id: str, **kwargs: Any) -> Any:
        self.asked.append(params.task)
        yield None


@pytest.mark.engine
async def test_an_engine_that_embeds_is_asked_for_an_embedding() -> None:
    client = Embedder()
    built = engine(client)
    built._pools = True
    await built.check_health()
    assert client.asked == ["embed"]


@pytest.mark.engine
async def test_an_engine_that_is_slow_but_steps_is_healthy() -> None:
    built = engine(Still())
    asyncio.get_running_loop().call_later(0.3, built._on_step, None)
    await built.check_health()


async def test_a_dead_engine_is_unhealthy() -> None:
    with pytest.raises(EngineFailed, match="died"):
        await engine(SimpleNamespace(errored=True)).check_health()


def lost_process() -> psutil.Process:
    with subprocess.Popen(["sleep", "60"]) as child:
        process = psutil.Process(child.pid)
        child.kill()
    return process


async def test_a_lost_worker_process_is_unhealthy() -> None:
    built = engine(Still())
    built._processes = [lost := lost_process()]
    with pytest.raises(EngineFailed, match=f"processes \\[{lost.pid}\\] are gone"):
        await built.check_health()
