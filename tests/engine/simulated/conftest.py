from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from openai import AsyncOpenAI

from serve_app.engine.simulated.engine import SimulatedEngine
from serve_app.settings import SimulatedSettings

AT_ONCE = SimulatedSettings(prefill_ms_per_token=0, step_ms=0)


@pytest.fixture
async def http() -> AsyncIterator[httpx.AsyncClient]:
    """Asks the simulated application in this process."""
    engine = SimulatedEngine({"served_model_name": ["sim", "alias"], "max_model_len": 4096}, AT_ONCE)
    app: Any = engine.app()
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://sim") as client:
        yield client


@pytest.fixture
def client(http: httpx.AsyncClient) -> AsyncOpenAI:
    """The stock client."""
    return AsyncOpenAI(base_url="http://sim/v1", api_key="none", http_client=http, max_retries=0)
