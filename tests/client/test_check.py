"""`serve-app check` on a simulated engine: every step passes, and says what it is."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from serve_app.client.check import run_checks
from serve_app.engine.simulated.engine import SimulatedEngine
from serve_app.settings import SimulatedSettings
from tests.conftest import served


@pytest.fixture
def base_url() -> Iterator[str]:
    engine = SimulatedEngine({"served_model_name": "sim"}, SimulatedSettings(step_ms=0, prefill_ms_per_token=0))
    app: Any = engine.app()

    @app.get("/v1/populations/replicas")
    async def replicas() -> dict[str, Any]:
        return {"data": [{"engine": {"tensor_parallel_size": 2, "engine_version": "simulated", "simulated": True}}]}

    with served(app) as url:
        yield url


def test_every_step_passes_and_says_simulated(base_url: str) -> None:
    found = {name: (problem, seen) for name, problem, seen in run_checks(base_url)}
    assert [(name, problem) for name, (problem, _) in found.items() if problem] == []
    assert found["model listed"][1] == "sim (SIMULATED)"
    assert found["replicas"][1] == "1 ready, tensor parallel 2, SIMULATED: no model runs"
    assert "simulated answer" in found["chat template"][1]


def test_too_few_replicas_are_a_problem_here_too(base_url: str) -> None:
    problems = {name: problem for name, problem, _ in run_checks(base_url, replicas=2) if problem}
    assert list(problems) == ["replicas"]
