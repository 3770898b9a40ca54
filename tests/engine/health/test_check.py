"""Health against a stand-in for AsyncLLM: the adapter's reaction to an engine that dies, stands still or is slow."""

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from serve_app.engine.health import check as health
from serve_app.engine.health.check import HealthCheck
from serve_app.engine.health.watchdog import Watchdog
from serve_app.engine.vllm import VLLMEngine
from serve_app.errors import EngineFailed
from serve_app.settings import HealthSettings


class Still:
    """Takes requests and never answers."""

    errored = False
    asked = 0

    async def generate(self, *args: Any, **kwargs: Any) -> Any:
        self.asked += 1
        await asyncio.sleep(60)
        yield None


def engine(client: Any, *, busy: bool = True, processes: list[psutil.Process] | None = None) -> VLLMEngine:
    """An engine of nothing but `client`, which has made no step since a check."""
    built = VLLMEngine({"model": "m"}, HealthSettings())
    built._engine = client
    built._processes = processes or []
    built._watchdog = Watchdog(stall_timeout_s=0.4, step_timeout_s=0.5)
    built._check = HealthCheck(built._watchdog, built._processes, ask=built._answer_one, busy=lambda: busy)
    built._check._checked_at = time.monotonic()
    return built


@pytest.mark.engine
async def test_an_engine_that_makes_no_step_is_unhealthy() -> None:
    with pytest.raises(EngineFailed, match=r"no step in \d+ s, beyond health\.step_timeout_s"):
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


async def test_an_engine_that_stepped_since_the_last_check_is_not_asked() -> None:
    client = Still()
    built = engine(client)
    built._on_step(None)
    await built.check_health()
    assert client.asked == 0


async def test_an_idle_engine_is_asked_now_and_then_only(monkeypatch: pytest.MonkeyPatch) -> None:
    client = Still()
    built = engine(client, busy=False)
    for _ in range(3):
        await built.check_health()
    assert client.asked == 0
    monkeypatch.setattr(health, "IDLE_PROBE_S", 0.0)
    with pytest.raises(EngineFailed):
        await built.check_health()


async def checked(built: VLLMEngine, times: int) -> None:
    for _ in range(times):
        await built.check_health()


@pytest.fixture
def worker() -> Iterator[psutil.Process]:
    """A process that computes without end."""
    with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as child:
        yield psutil.Process(child.pid)
        child.kill()


@pytest.mark.engine
async def test_an_engine_whose_worker_computes_is_healthy_check_after_check_and_stopped_it_hangs(
    worker: psutil.Process, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(health, "PATIENCE_S", 1.5)
    built = engine(Still(), processes=[worker])
    watchdog = Watchdog([worker.pid], stall_timeout_s=2.0, step_timeout_s=60.0)
    built._check = HealthCheck(watchdog, [worker], ask=built._answer_one, busy=lambda: True)
    built._check._checked_at = time.monotonic()
    await checked(built, 3)  # longer than the stall
    os.kill(worker.pid, signal.SIGSTOP)
    with pytest.raises(EngineFailed, match=f"its worker {worker.pid} used no processor time: it hangs"):
        await checked(built, 5)


@pytest.mark.engine
async def test_checks_are_short_and_together_find_an_engine_that_hangs_for_longer_than_any_of_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(health, "PATIENCE_S", 0.1)
    built = engine(Still())
    watchdog = Watchdog(stall_timeout_s=2.0, step_timeout_s=2.0)
    built._check = HealthCheck(watchdog, [], ask=built._answer_one, busy=lambda: True)
    await checked(built, 3)
    with pytest.raises(EngineFailed, match="no step in 2 s"):
        await checked(built, 20)


@pytest.mark.engine
async def test_an_idle_engine_with_a_stopped_process_is_asked(worker: psutil.Process) -> None:
    os.kill(worker.pid, signal.SIGSTOP)
    while worker.status() != psutil.STATUS_STOPPED:
        await asyncio.sleep(0.01)
    with pytest.raises(EngineFailed, match="no step"):
        await engine(Still(), busy=False, processes=[worker]).check_health()


async def test_a_dead_engine_is_unhealthy() -> None:
    with pytest.raises(EngineFailed, match="died"):
        await engine(SimpleNamespace(errored=True)).check_health()


async def test_a_lost_worker_process_is_unhealthy(worker: psutil.Process) -> None:
    built = engine(Still(), processes=[worker])
    worker.kill()
    while worker.status() != psutil.STATUS_ZOMBIE:
        await asyncio.sleep(0.01)
    with pytest.raises(EngineFailed, match=f"processes \\[{worker.pid}\\] are gone"):
        await built.check_health()
