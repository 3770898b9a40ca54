"""`serve-app ctr`: what its options come to."""

import json
from pathlib import Path
from typing import Any

import pytest
import typer
from rich.console import Console
from typer.testing import CliRunner

from serve_app.cli import app
from serve_app.cli import ctr as ctr_command
from serve_app.cli.common import default_group
from serve_app.cli.provider import job_fields
from serve_app.client.populations import PopulationClient
from serve_app.errors import BadSettings
from serve_app.workloads.ctr.people.profile_file import ProfileFile
from serve_app.workloads.ctr.study import Study
from tests.workloads.ctr.fakes import FakeClient, scored


class Ran(Exception):
    """Raised in place of a run."""


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What `run_study` would have been called with."""
    found: dict[str, Any] = {}

    def run_study(client: PopulationClient, study: Study | None, **options: Any) -> None:
        found.update(options, base_url=client.base_url, study=study)
        raise Ran

    monkeypatch.setattr(ctr_command, "run_study", run_study)
    return found


def serve_app(*arguments: str) -> Exception | None:
    result = CliRunner().invoke(app, ["ctr", *arguments])
    assert result.exception is None or isinstance(result.exception, Exception), result.output
    return result.exception


def test_the_flags_that_users_know_make_the_study_that_they_always_made(asked: dict[str, Any]) -> None:
    serve_app("--ad", "A phone", "--ad-platform", "tiktok", "--population-size", "5", "--seed", "7", "--out", "there")
    assert asked["study"] == Study(ad="A phone", platform="tiktok", size=5, seed=7)
    assert asked["out"] == Path("there")
    serve_app("--ad", "A phone")
    assert len(asked["study"].people) == 1000


def test_options_of_people_and_questions_reach_the_study(asked: dict[str, Any], tmp_path: Path) -> None:
    people, platforms = tmp_path / "people.csv", tmp_path / "platforms.yaml"
    people.write_text("who,Age,w\na,30,1\nb,40,2\nc,50,2\n")
    platforms.write_text("radio: Between two songs.\n")
    raised = serve_app(
        "--ad", "x", "--ad-platform", "radio", "--platforms", str(platforms), "--swap", "order", "--profiles",
        str(people), "--map", "age=Age", "--id-column", "who", "--weights", "w", "--describe", "{age}", "--stratify",
        "age:35", "--allocation", "equal", "--population-size", "2", "--seed", "3", "--require", "age",
    )  # fmt: skip
    assert isinstance(raised, Ran)
    assert asked["study"] == Study(
        ad="x", platform="radio", context="Between two songs.", swap="order", size=2, seed=3, strata=("age:35",),
        allocation="equal", profiles=ProfileFile(people, {"age": "Age"}, "who", "w", "{age}", ("age",)),
    )  # fmt: skip


def test_how_people_were_read_and_one_of_them_is_shown_before_anything_runs(
    asked: dict[str, Any], tmp_path: Path
) -> None:
    people = tmp_path / "people.csv"
    people.write_bytes("id;age;income\r\na;30;1.200,50\r\nb;old;\r\nc;50;\r\n".encode("utf-16"))
    result = CliRunner().invoke(app, ["ctr", "--ad", "x", "--profiles", str(people)])
    assert result.output.replace(str(people), "people.csv").splitlines() == [
        "people.csv read as `;`, UTF-16: 2 people, 2 columns; 1 without income; 1 row is nobody "
        "(line 3: age: 'old' is not a number)",
        "the model will see a as: age: 30, income: 1200.50",
    ]
    assert isinstance(result.exception, Ran)


def test_the_terminal_and_the_report_tell_of_gaps(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    people = tmp_path / "people.csv"
    people.write_text("age,income\n30,9\n,5\n-1,7\n33,\n")
    client = FakeClient(lambda system, user: scored(-1))
    study = Study(ad="x", profiles=ProfileFile(people))
    figures = ctr_command.run_study(client, study, out=tmp_path, output=Console(width=300))
    said = "read as `,`, UTF-8: 4 people, 2 columns; 1 without age; 1 without income; impossible age: -1 in line 4"
    assert said in capsys.readouterr().out
    assert figures["people_summary"]["missing"] == {"age": 1, "income": 1}
    page = (tmp_path / "job" / "report.html").read_text()
    assert "The file of people has 1 without age; 1 without income; impossible age: -1 in line 4." in page
    assert json.loads((tmp_path / "job" / "report.json").read_text())["people_summary"]["text"] == said


def test_a_persona_is_a_bank_that_comes_with_the_package(asked: dict[str, Any]) -> None:
    serve_app("--ad", "x", "--persona", "rich")
    assert asked["study"].bank == "rich"


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ([], "--ad is empty"),
        (["--ad", "x", "--persona", "rich", "--bank", "default"], "--persona"),
        (["--ad", "x", "--persona", "poor"], "--persona 'poor' is unknown"),
        (["--ad", "x", "--map", "a=b"], "--map: for a file of --profiles only"),
        (["--ad", "x", "--require", "age"], "--require: for a file of --profiles only"),
        (["--ad", "x", "--profiles", "p.csv", "--map", "a"], "--map a: write name=column"),
        (["--ad", "x", "--profiles", "p.csv", "--map", "a=b", "--map", "a=c"], "'a' is mapped twice"),
        (["--ad", "x", "--profiles", "none.csv"], "none.csv: No such file"),
        (["--ad", "x", "--stratify", "agee"], "--stratify: 'agee' is no attribute"),
        (["--ad", "x", "--platforms", "none.yaml"], "none.yaml: No such file"),
        (["--ad", "x", "--provider", "openia", "--model", "m"], "--provider 'openia' is unknown: use own, openai"),
    ],
)
def test_wrong_options_are_refused_before_anything_runs(
    arguments: list[str], problem: str, asked: dict[str, Any]
) -> None:
    raised = serve_app(*arguments)
    assert isinstance(raised, BadSettings)
    assert problem in str(raised)
    assert not asked


def test_a_subcommand_can_stand_beside_the_bare_command(asked: dict[str, Any]) -> None:
    group, ran = typer.Typer(cls=default_group("predict")), []
    group.command()(ctr_command.predict)

    @group.command()
    def compare(ad: str) -> None:
        ran.append(ad)

    assert CliRunner().invoke(group, ["compare", "B"]).exit_code == 0
    assert (ran, asked) == (["B"], {})
    assert isinstance(CliRunner().invoke(group, ["--ad", "A"]).exception, Ran)
    assert asked["study"].ad == "A"
    assert isinstance(CliRunner().invoke(group, ["predict", "--ad", "C"]).exception, Ran)
    assert asked["study"].ad == "C"


def test_options_before_another_command_are_refused_and_not_dropped(asked: dict[str, Any]) -> None:
    result = CliRunner().invoke(app, ["ctr", "--ad", "compare", "--seed", "3", "compare", "--ad", "B"])
    assert result.exit_code == 2
    assert "write options after the command" in result.output
    assert not asked


def test_an_ad_may_be_called_like_a_command(asked: dict[str, Any]) -> None:
    serve_app("--ad", "compare")
    assert asked["study"].ad == "compare"


def test_a_mistyped_command_is_told_by_name(asked: dict[str, Any]) -> None:
    result = CliRunner().invoke(app, ["ctr", "cmpare", "--ad", "x"])
    assert (result.exit_code, "compare" in result.output) == (2, True)


@pytest.mark.parametrize(
    ("options", "flags"),
    [
        (["--ad", "x"], "--ad"),
        (["--seed", "42", "--swap", "none"], "--swap, --seed"),
        (["--provider", "own"], "--provider"),
        (["--price", "1"], "--price"),
    ],
)
def test_a_resumed_job_takes_its_own_study_and_refuses_another_by_name(
    options: list[str], flags: str, asked: dict[str, Any]
) -> None:
    raised = serve_app("--resume", "job", *options)
    assert isinstance(raised, BadSettings)
    assert str(raised).startswith(f"{flags}: not with --resume")
    assert not asked
    assert isinstance(serve_app("predict", "--resume", "job", "--out", "there"), Ran)
    assert (asked["resume"], asked["out"], asked["study"]) == ("job", Path("there"), None)


def test_a_provider_is_a_field_of_the_job_with_its_key_by_name_only(asked: dict[str, Any]) -> None:
    serve_app("--ad", "x", "--provider", "openai", "--model", "m", "--batch-size", "4", "--requests-per-minute", "9")
    assert asked["provider"] == {
        "base_url": "https://api.openai.com/v1", "model": "m", "api_key_env": "OPENAI_API_KEY", "batch_rows": 4,
        "requests_per_minute": 9,
    }  # fmt: skip


def test_replicas_cost_time_and_a_provider_its_tokens_or_nothing(asked: dict[str, Any]) -> None:
    serve_app("--ad", "x")
    assert asked.pop("price") == {"replica_hour": 0.1}
    provider = ("--ad", "x", "--provider", "openai", "--model", "m")
    serve_app(*provider)
    assert "price" not in asked
    serve_app(*provider, "--input-price", "0.15", "--output-price", "0.6")
    assert asked["price"] == {"input_per_million_tokens": 0.15, "output_per_million_tokens": 0.6}
    for wrong in ((*provider, "--price", "2"), ("--ad", "x", "--input-price", "1")):
        assert "-price" in str(serve_app(*wrong))


@pytest.mark.parametrize(
    ("provider", "model", "limits", "fields"),
    [
        ("own", "", {}, {}),
        ("own", "m", {"batch_rows": None}, {"model": "m"}),
        ("http://h/v1", "m", {}, {"provider": {"base_url": "http://h/v1", "model": "m", "api_key_env": ""}}),
        ("http://h/v1", "m", {"api_key_env": "K"},
         {"provider": {"base_url": "http://h/v1", "model": "m", "api_key_env": "K"}}),
    ],
)  # fmt: skip
def test_who_answers_is_part_of_the_job(
    provider: str, model: str, limits: dict[str, Any], fields: dict[str, Any]
) -> None:
    assert job_fields(provider, model, **limits) == fields


@pytest.mark.parametrize(
    ("provider", "model", "problem"), [("own", "", "--concurrency: only for"), ("openai", "", "--model: name")]
)
def test_a_provider_that_is_half_said_is_refused(provider: str, model: str, problem: str) -> None:
    with pytest.raises(BadSettings, match=problem):
        job_fields(provider, model, concurrency=2)
