"""What a client's job may name of the driver's own."""

import json
from pathlib import Path
from typing import Any

import pytest

from serve_app.driver.http.allowed import check_allowed
from serve_app.driver.jobs import part as run
from serve_app.errors import BadSettings
from serve_app.schema import Row
from serve_app.settings import ControlAccessSettings, DriverSettings
from serve_app.spec import JobSpec
from tests.driver.kit import MakeJobs, serve
from tests.fakes import FakePool


@pytest.mark.parametrize(
    ("asked", "problem"),
    [
        (
            {"provider": {"base_url": "https://evil.example/v1", "model": "m", "api_key_env": "MY_KEY"}},
            "MY_KEY may",
        ),
        (
            {"provider": {"base_url": "https://api.example/v10", "model": "m", "api_key_env": "MY_KEY"}},
            "MY_KEY may",
        ),
        ({"provider": {"base_url": "https://api.example/v1", "model": "m", "api_key_env": "HOME"}}, "HOME may"),
        ({"rows": [], "source": "/etc/passwd", "format": "csv", "prompt": "{x}"}, "source_folders"),
        ({"rows": [], "source": "file:///etc/passwd", "format": "csv", "prompt": "{x}"}, "source_folders"),
        ({"rows": [], "source": "{folder}/../x.csv", "prompt": "{x}"}, "source_folders"),
        ({"rows": [], "source": "zip://x.csv::file:///etc/x.zip", "prompt": "{x}"}, "source_folders"),
        ({"rows": [], "source": "LOCAL:///etc/x.csv", "prompt": "{x}"}, "source_folders"),
        ({"provider": {"base_url": "https://api.example/v1/", "model": "m", "api_key_env": "MY_KEY"}}, ""),
        ({"provider": {"base_url": "http://inside:8000/v1", "model": "m"}}, ""),
        ({"rows": [], "source": "{folder}/x.csv", "prompt": "{x}"}, ""),
        ({"rows": [], "source": "s3://bucket/x.csv", "prompt": "{x}"}, ""),
    ],
)
def test_where_there_are_keys_jobs_may_name_only_what_the_operator_does(
    tmp_path: Path, asked: dict[str, Any], problem: str
) -> None:
    if "source" in asked:
        asked = {**asked, "source": asked["source"].format(folder=tmp_path)}
    job = JobSpec.model_validate({"rows": [{"custom_id": "1", "prompt": "x"}], **asked})
    settings = DriverSettings(
        access=ControlAccessSettings(key_files=("keys.yaml",)),
        provider_keys={"MY_KEY": "https://api.example/v1"},
        source_folders=(str(tmp_path),),
    )
    check_allowed(job, DriverSettings())  # one's own machine
    if problem:
        with pytest.raises(BadSettings, match=problem):
            check_allowed(job, settings)
    else:
        check_allowed(job, settings)


async def test_what_is_not_permitted_is_refused_over_http(make_jobs: MakeJobs) -> None:
    pool = FakePool(["a"])
    jobs = await make_jobs(pool, access={"key_files": ("keys.yaml",)})
    provider = {"base_url": "https://evil.example/v1", "model": "m", "api_key_env": "HOME"}
    body = {"prompt": "x", "provider": provider}
    async with await serve(jobs, pool) as client:
        answers = [
            await client.post("/", json={**body, "rows": [{"custom_id": "1"}]}),
            await client.post("/", data={"spec": json.dumps(body)}, files={"file": ("rows.csv", b"x\n1\n")}),
        ]
        assert [answer.status_code for answer in answers] == [400, 400]
        assert (await client.get("/")).json()["data"] == []


def test_a_block_ends_after_so_many_rows_or_characters(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "LARGEST_BLOCK_CHARACTERS", 10)
    long, short = Row("l", prompt="x" * 9), Row("s", messages=({"role": "user", "content": "x"},))
    left = iter([long, short, short, short, short])
    taken: list[tuple[int, bool]] = []
    while not taken or not taken[-1][1]:
        some, last = run._next_rows(left, 2)
        taken.append((len(some), last))
    assert taken == [(2, False), (2, False), (1, True)]
    assert run._next_rows(iter([long, long, long]), 100) == ([long, long], False)
