"""Batches over HTTP and by handle."""

import json
import pickle
from types import SimpleNamespace
from typing import Any

import httpx
import pytest

from serve_app.driver.batches.record import batch_id_of
from serve_app.driver.batches.routes import batches_app
from serve_app.errors import BadSettings, JobNotFound
from serve_app.spec import JobSpec
from tests.driver.batches.kit import CHAT, Driver, HttpPool, MakeDriver, many


async def serve(driver: Driver) -> httpx.AsyncClient:
    transport = httpx.ASGITransport(batches_app(driver.batches), root_path="/v1/batches")
    return httpx.AsyncClient(transport=transport, base_url="http://test/v1")


async def test_a_batch_from_create_to_list_over_http(make: MakeDriver) -> None:
    driver = await make(HttpPool(["a"]))
    async with await serve(driver) as client:
        ids = []
        for _ in range(3):
            body = {"input_file_id": driver.upload(*many(2)), "endpoint": CHAT, "completion_window": "24h"}
            created = await client.post("/batches", json=body)
            assert created.status_code == 200, created.text
            ids.append(created.json()["id"])
            assert (await driver.ended(ids[-1]))["status"] == "completed"
        page = (await client.get("/batches", params={"limit": 2})).json()
        assert ([one["id"] for one in page["data"]], page["has_more"]) == (ids[:0:-1], True)
        rest = (await client.get("/batches", params={"limit": 2, "after": page["last_id"]})).json()
        assert ([one["id"] for one in rest["data"]], rest["has_more"]) == (ids[:1], False)
        assert (await client.get(f"/batches/{ids[0]}")).json() == rest["data"][0]
        late = await client.post(f"/batches/{ids[0]}/cancel")
        assert late.status_code == 409
        assert "is completed" in late.json()["error"]["message"]


async def test_a_wrong_request_is_refused_at_once_with_the_field_that_is_wrong(make: MakeDriver) -> None:
    driver = await make(HttpPool(["a"]))
    good = {"input_file_id": driver.upload(*many(2)), "endpoint": CHAT, "completion_window": "24h"}
    picture = driver.upload(b"x", purpose="vision")
    async with await serve(driver) as client:
        for change, param in (
            ({"endpoint": "/v1/moderations"}, "endpoint"),
            ({"completion_window": "soon"}, "completion_window"),
            ({"input_file_id": "file-nope"}, "input_file_id"),
            ({"input_file_id": picture}, "input_file_id"),
            ({"metadata": {"k": "v" * 513}}, "metadata"),
            ({"metadata": {str(i): "" for i in range(17)}}, "metadata"),
            ({"metadata": {"k": "\ud800"}}, "metadata"),
            ({"metadata": {"\udfff": "v"}}, "metadata"),
            ({"output_expires_after": {"anchor": "created_at", "seconds": 1}}, "output_expires_after.seconds"),
            ({"unknown": 1}, "unknown"),
        ):
            headers = {"content-type": "application/json"}
            answer = await client.post("/batches", content=json.dumps({**good, **change}), headers=headers)
            assert answer.status_code == 400, change
            assert answer.json()["error"]["param"] == param
        assert (await client.get("/batches")).json()["data"] == []
        for path in ("/batches/batch_nope", f"/batches/batch_{'0' * 24}", "/batches/..%2Fx"):
            assert (await client.get(path)).status_code == 404


@pytest.mark.parametrize("metadata", [{}, {"batch": "mine"}])
async def test_an_ordinary_job_with_a_batchs_name_is_no_batch(make: MakeDriver, metadata: dict[str, str]) -> None:
    driver = await make(HttpPool(["a"]))
    job_id = f"batch-{'0' * 24}"
    await driver.jobs.submit(JobSpec(job_id=job_id, rows=({"custom_id": "1", "prompt": "x"},), metadata=metadata))
    assert await driver.batches.page() == ([], False)
    with pytest.raises(JobNotFound):
        await driver.batches.retrieve(batch_id_of(job_id))
    await driver.batches.recover()


async def test_calls_by_handle_raise_what_the_driver_returned_and_it_raised_nothing() -> None:
    from ray.exceptions import ActorDiedError

    from serve_app.driver.batches.deployment import HandleBatches
    from serve_app.driver.deployment import Driver as Deployed
    from serve_app.errors import ServerUnavailable

    class Refusing:
        async def retrieve(self, batch_id: str) -> Any:
            raise BadSettings(f"{batch_id}: wrong", field="input_file_id")

    class Handle:
        """A driver's, or that of a dead one."""

        def __init__(self, error: Exception | None = None) -> None:
            self.error = error
            self.batches = self

        async def remote(self, call: str, *arguments: Any, **named: Any) -> Any:
            if self.error is not None:
                raise self.error
            driver = SimpleNamespace(_batches=Refusing())
            method = Deployed.func_or_class.batches  # type: ignore[attr-defined]  # Serve's decorator is untyped
            answer = await method(driver, call, *arguments, **named)
            return pickle.loads(pickle.dumps(answer))

    with pytest.raises(BadSettings, match="batch_1: wrong$") as info:
        await HandleBatches(Handle()).retrieve("batch_1")
    assert info.value.field == "input_file_id"
    with pytest.raises(ServerUnavailable, match="the driver does not answer"):
        await HandleBatches(Handle(ActorDiedError())).page()
