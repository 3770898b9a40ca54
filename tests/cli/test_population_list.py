"""`serve-app population`: the list of jobs, and who answers a new one."""

import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from typer.testing import CliRunner

from serve_app.cli import app, common, population
from serve_app.errors import BadSettings
from serve_app.spec import JobSpec, JobStatus

LONG = "a-population-with-a-name-that-is-longer-than-any-terminal-is-wide-" * 2


class Client:
    """`list` answers these jobs; what is submitted is kept."""

    def __init__(self, jobs: list[JobStatus]) -> None:
        self.jobs = jobs
        self.specs: list[JobSpec] = []

    def list(self) -> list[JobStatus]:
        return self.jobs

    def submit(self, spec: JobSpec) -> str:
        self.specs.append(spec)
        return "job"


@pytest.fixture
def client(monkeypatch: pytest.MonkeyPatch) -> Client:
    looks = [
        JobStatus.model_validate(
            {"id": f"ctr-v1-{n}", "state": "running" if n == 19 else "completed", "total": 50, "ok": 49, "failed": 1,
             "rows_per_s": 10.0, "metadata": {"group": "compare-20261128-120000-ab12"}}
        )
        for n in range(20)
    ]  # fmt: skip
    single = JobStatus.model_validate({"id": LONG, "state": "completed", "total": 7, "ok": 7, "rows_per_s": 3.0})
    made = Client([*looks, single])
    monkeypatch.setattr(population, "_client", lambda base_url: made)
    return made


def run(*arguments: str) -> str:
    result = CliRunner().invoke(app, ["population", *arguments], catch_exceptions=False)
    assert result.exit_code == 0
    return result.stdout


def test_jobs_of_a_comparison_are_one_line_of_the_list(client: Client) -> None:
    text = run("list")
    (line,) = [line for line in text.splitlines() if "compare-20261128-120000-ab12" in line]
    assert "running, completed" in line or "completed, running" in line
    assert "1,000/1,000" in line
    assert "20 jobs" in line
    assert "ctr-v1-3" not in text


def test_all_shows_each_job_and_json_always_does(client: Client) -> None:
    assert run("list", "--all").count("ctr-v1-") == 20
    assert len(json.loads(run("list", "--json"))) == 21


def test_an_id_is_never_shortened(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    assert LONG in run("list")  # piped
    for width in (200, 60, 30):
        terminal = Console(soft_wrap=True, force_terminal=True, width=width, color_system=None)
        monkeypatch.setattr(common, "console", terminal)
        cells = [line.split("│")[1].strip() for line in run("list", "--all").splitlines() if line.startswith("│")]
        assert LONG in "".join(cells)


def test_names_of_presets_are_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    from serve_app.k8s.values import Values

    monkeypatch.setenv("COLUMNS", "40")
    shown = CliRunner().invoke(app, ["k8s", "presets"]).stdout
    for name, preset in Values.load(Path("k8s/values.yaml")).presets.items():
        assert name in shown
        assert preset.model in shown


URL = "https://api.openai.com/v1"


@pytest.mark.parametrize(
    "options",
    [
        ["--provider", URL, "--model", "m", "--api-key-env", "K"],
        ["--provider-url", URL, "--provider-model", "m", "--provider-key-env", "K"],
        ["--provider_url", URL, "--provider_model", "m", "--api_key_env", "K"],
    ],
)
def test_a_provider_is_spelled_as_everywhere_and_as_before(options: list[str], client: Client) -> None:
    run("submit", "s3://b/rows.csv", "--prompt", "{x}", *options, "--concurrency", "2")
    (spec,) = client.specs
    assert spec.provider is not None
    assert (spec.provider.base_url, spec.provider.model, spec.provider.api_key_env) == (URL, "m", "K")
    assert (spec.provider.concurrency, spec.model) == (2, None)


def test_a_model_alone_is_the_served_one_and_a_price_the_replicas(client: Client) -> None:
    run("submit", "s3://b/rows.csv", "--prompt", "{x}", "--model", "m", "--price", "2")
    (spec,) = client.specs
    assert (spec.model, spec.provider, spec.price.replica_hour) == ("m", None, 2.0)


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        (["--concurrency", "2"], "--concurrency: only for an external --provider"),
        (["--provider", "openai"], "--model: name the provider's model"),
        (["--provider", "openai", "--model", "m", "--price", "1"], "--price: of a replica's hour"),
    ],
)
def test_options_of_a_provider_that_do_not_go_together_are_refused(
    options: list[str], problem: str, client: Client
) -> None:
    result: Any = CliRunner().invoke(app, ["population", "submit", "s3://b/rows.csv", "--prompt", "{x}", *options])
    assert isinstance(result.exception, BadSettings)
    assert problem in str(result.exception)
    assert client.specs == []
