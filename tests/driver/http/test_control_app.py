"""What all control routes have in common."""

from __future__ import annotations

import httpx
import pytest

from serve_app.driver.deployment import build_app
from serve_app.driver.http.control_app import control_app, without_places
from serve_app.errors import JobNotFound, StoreError
from tests.driver.kit import MakeJobs
from tests.fakes import FakePool


@pytest.mark.parametrize(
    ("message", "told"),
    [
        ("store: cannot write /srv/private/runs/a/manifest.json: No space left on device",
         "store: cannot write manifest.json: No space left on device"),
        ("no job 'a' in /srv/private/runs", "no job 'a' in runs"),
        ("store: cannot read s3://secret-bucket/in/runs/a/job.json: access denied",
         "store: cannot read job.json: access denied"),
        ("no file 'file-1': upload it first, and/or look", "no file 'file-1': upload it first, and/or look"),
    ],
)  # fmt: skip
async def test_errors_do_not_tell_where_the_server_keeps_its_files(message: str, told: str) -> None:
    assert without_places(message) == told
    app = control_app("x")

    @app.get("/{kind}")
    async def fail(kind: str) -> None:
        raise (StoreError if kind == "store" else JobNotFound)(message)

    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
        for kind, status in (("store", 500), ("missing", 404)):
            answer = await client.get(f"/{kind}")
            assert (answer.status_code, answer.json()["error"]["message"]) == (status, told)


async def test_populations_are_at_their_own_path_with_and_without_a_slash(make_jobs: MakeJobs) -> None:
    pool = FakePool(["a"])
    transport = httpx.ASGITransport(build_app(await make_jobs(pool), pool), root_path="/v1/populations")
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        for path in ("/v1/populations", "/v1/populations/"):
            created = await client.post(path, json={"rows": [{"prompt": "x"}]})
            assert created.status_code == 201
            assert (await client.get(path)).status_code == 200
        assert (await client.get(f"/v1/populations/{created.json()['id']}/")).status_code == 404
