"""What a client's job may name of the driver's own."""

import json
from pathlib import Path
from typing import Any

import httpx
import pytest

from serve_app.driver.deployment import build_app
from serve_app.driver.http.allowed import check_allowed
from serve_app.driver.jobs import part as run
from serve_app.errors import BadSettings
from serve_app.schema import Row
from serve_app.serving.apps import guarded
from serve_app.settings import PROVIDERS, ControlAccessSettings, DriverSettings
from serve_app.spec import JobSpec
from tests.driver.kit import MakeJobs, serve
from tests.fakes import FakePool

WITH_KEYS = ControlAccessSettings(key_files=("keys.yaml",))


def provider(base_url: str, **fields: Any) -> dict[str, Any]:
    return {"provider": {"base_url": base_url, "model": "m", **fields}}


def source(url: str) -> dict[str, Any]:
    return {"rows": [], "source": url, "format": "csv", "prompt": "{x}"}


def problem_of(asked: dict[str, Any], settings: DriverSettings) -> str:
    job = JobSpec.model_validate({"rows": [{"custom_id": "1", "prompt": "x"}], **asked})
    try:
        check_allowed(job, settings)
    except BadSettings as error:
        return str(error)
    return ""


@pytest.mark.parametrize("access", [WITH_KEYS, ControlAccessSettings()], ids=["keys", "no-keys"])
@pytest.mark.parametrize(
    ("asked", "problem"),
    [
        (provider("https://evil.example/v1", api_key_env="MY_KEY"), "MY_KEY may"),
        (provider("https://api.example/v10", api_key_env="MY_KEY"), "MY_KEY may"),
        (provider("https://api.example/v1/../admin", api_key_env="MY_KEY"), "MY_KEY may"),
        (provider("https://api.example@evil.example/v1", api_key_env="MY_KEY"), "MY_KEY may"),
        (provider("https://api.example/v1", api_key_env="HOME"), "HOME may"),
        (provider("http://169.254.169.254/latest"), "provider.base_url: "),
        (provider("http://127.0.0.1:9000/v1"), "provider_urls"),
        (provider("http://[::1]:9000/v1"), "provider_urls"),
        (provider("http://x:99999/v1"), "malformed URL"),
        (source("/etc/passwd"), "source_folders"),
        (source("file:///etc/passwd"), "source_folders"),
        (source("{folder}/../x.csv"), "source_folders"),
        (source("{folder}/link.csv"), "source_folders"),
        (source("zip://x.csv::file:///etc/x.zip"), "chains"),
        (source("LOCAL:///etc/x.csv"), "source_folders"),
        (source("http://169.254.169.254/latest/meta-data/"), "source: "),
        (source("http://10.0.0.1/x.csv"), "source_urls"),
        (source("s3://bucket/x.csv?endpoint_override=169.254.169.254&scheme=http"), "source_urls"),
        (source("s3://named/in/../x.csv?endpoint_override=evil"), "source_urls"),
        (source("abfss://c@10.0.0.1/x.csv"), "source_urls"),
        (source("hdfs://inside:8020/x.csv"), "source_urls"),
        (source("ftp://inside/x.csv"), "source_urls"),
        (source("memory://x.csv"), "source_urls"),
        (source("{folder}/runs/other/input.jsonl"), "own store"),
        (source("{folder}/x/../runs/other/input.jsonl"), "own store"),
        (source("file://{folder}/runs/other/input.jsonl"), "own store"),
        (source("{folder}/into-the-store/input.jsonl"), "own store"),
        (provider("https://api.example/v1/", api_key_env="MY_KEY"), ""),
        (provider("http://inside:8000/v1"), ""),
        (source("{folder}/x.csv"), ""),
        (source("s3://named/in/x.csv"), ""),
        (source("http://10.0.0.2:9000/data/x.csv"), ""),
    ],
)
def test_jobs_may_name_only_what_the_operator_does(
    tmp_path: Path, access: ControlAccessSettings, asked: dict[str, Any], problem: str
) -> None:
    (tmp_path / "in" / "runs" / "other").mkdir(parents=True)
    folder = tmp_path / "in"
    (folder / "link.csv").symlink_to("/etc/passwd")
    (folder / "into-the-store").symlink_to(folder / "runs" / "other")
    if "source" in asked:
        asked = {**asked, "source": asked["source"].format(folder=folder)}
    settings = DriverSettings(
        store=str(folder / "runs"),
        access=access,
        provider_keys={"MY_KEY": "https://api.example/v1"},
        provider_urls=("http://inside:8000/v1",),
        source_folders=(str(folder),),
        source_urls=("s3://named/in", "http://10.0.0.2:9000/data"),
    )
    if problem:
        assert problem in problem_of(asked, settings)
    else:
        assert problem_of(asked, settings) == ""


@pytest.mark.parametrize(
    "asked",
    [source("https://host.example/x.csv"), source("s3://bucket/x.csv?region=eu-west-1"), source("gs://b/x.csv"),
     source("abfss://c@account.dfs.core.windows.net/x.csv"), provider("https://any.example/v1")],
)  # fmt: skip
def test_public_addresses_need_a_name_by_the_operator_only_where_there_are_keys(asked: dict[str, Any]) -> None:
    assert problem_of(asked, DriverSettings()) == ""
    assert "_urls" in problem_of(asked, DriverSettings(access=WITH_KEYS))


def test_the_known_providers_may_be_asked_each_with_its_own_key() -> None:
    for access in (WITH_KEYS, ControlAccessSettings()):
        settings = DriverSettings(access=access)
        for url, key in PROVIDERS.values():
            assert problem_of(provider(url, api_key_env=key), settings) == ""
        assert problem_of(provider("https://api.deepseek.com/v1", api_key_env="OPENAI_API_KEY"), settings)


@pytest.mark.parametrize(
    ("store", "url"),
    [
        ("s3://bucket/runs", "s3://bucket/runs/job/input.jsonl"),
        ("s3://bucket/runs?region=eu-west-1", "S3://bucket//runs/./job/input.jsonl"),
        ("s3://bucket/runs", "s3://bucket/x/../runs/job/x.jsonl"),
        ("s3://bucket", "s3://bucket/job/x.jsonl?region=eu-west-1"),
        ("s3://bucket/runs", "s3://bucket/%72uns/job/x.jsonl"),
        ("gs://bucket/runs", "gcs://bucket/runs/job/x.jsonl"),
        ("abfss://c@account.dfs.core.windows.net/runs", "abfs://account.dfs.core.windows.net/c/runs/x.jsonl"),
        ("abfss://c@account.dfs.core.windows.net/runs", "abfs://c@account/runs/x.jsonl"),
    ],
)
def test_a_store_elsewhere_is_no_source_either(store: str, url: str) -> None:
    assert "own store" in problem_of(source(url), DriverSettings(store=store, source_urls=("s3://bucket",)))
    assert "own store" not in problem_of(source("s3://bucket/runs-2/x.jsonl"), DriverSettings(store=store + "/x"))


async def test_a_page_gets_no_file_and_no_secret_of_a_default_server(
    make_jobs: MakeJobs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wJalrXUtnFEMI")
    (tmp_path / "id_rsa.csv").write_text("line\n-----BEGIN PRIVATE KEY-----\n")
    pool = FakePool(["a"])
    jobs = await make_jobs(pool)
    app = guarded(jobs.settings.access, build_app(jobs, pool))
    evil = provider("https://evil.example/v1", api_key_env="AWS_SECRET_ACCESS_KEY")
    body = json.dumps({**source(str(tmp_path / "id_rsa.csv")), "prompt": "{line}", **evil})
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://127.0.0.1:8000") as client:
        simple = {"content-type": "text/plain;charset=UTF-8", "origin": "https://evil.example"}
        for headers, status in (
            ({**simple, "host": "rebound.evil.example"}, 403),
            (simple, 403),
            ({"content-type": "text/plain"}, 415),
            ({"content-type": "application/json"}, 400),
        ):
            answer = await client.post("/", content=body, headers=headers)
            assert answer.status_code == status
            assert "PRIVATE" not in answer.text
        assert (await client.get("/")).json()["data"] == []


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


def test_a_block_ends_after_so_many_rows_or_characters() -> None:
    long, short = Row("l", prompt="x" * 9), Row("s", messages=({"role": "user", "content": "x"},))
    left = iter([long, short, short, short, short])
    taken: list[tuple[int, bool]] = []
    while not taken or not taken[-1][1]:
        some, last = run._next_rows(left, 2, 10)
        taken.append((len(some), last))
    assert taken == [(2, False), (2, False), (1, True)]
    assert run._next_rows(iter([long, long, long]), 100, 10) == ([long, long], False)
