"""The server under contract: the one that CONTRACT_URL names, or else the cluster that all tests share."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

CONTRACT_URL = "CONTRACT_URL"
QUESTION = [{"role": "user", "content": "What is the capital of France?"}]


@pytest.fixture(scope="session")
def base_url(request: pytest.FixtureRequest) -> str:
    given = os.environ.get(CONTRACT_URL)
    return given.rstrip("/") if given else str(request.getfixturevalue("cluster").base_url)


@pytest.fixture(scope="session")
def http(base_url: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=base_url, timeout=120) as client:
        yield client


@pytest.fixture(scope="session")
def model(http: httpx.Client) -> str:
    return str(http.get("/v1/models").json()["data"][0]["id"])


@pytest.fixture(scope="session")
def openai(base_url: str) -> Iterator[Any]:
    from openai import OpenAI

    with OpenAI(base_url=f"{base_url}/v1", api_key="none", max_retries=0, timeout=120) as client:
        yield client
