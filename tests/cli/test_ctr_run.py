"""`serve-app ctr` against a server in this process: what it prints, and the files that it leaves."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.special import expit
from typer.testing import CliRunner, Result

from serve_app.cli import app
from serve_app.client import populations
from serve_app.errors import BadSettings, ServerUnavailable
from serve_app.workloads.ctr.people.profiles import generate_profiles
from serve_app.workloads.ctr.statistics.calibration import Source, calibrate, save_calibration
from serve_app.workloads.ctr.statistics.history import HistoricAd
from serve_app.workloads.report.page import SIMULATED
from tests.workloads.ctr.fakes import FakeClient, Model, scored


def model(system: str, user: str) -> dict[str, Any]:
    """Women click more than men."""
    return scored(0.5 if "Female" in user else -1.5)


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """Makes a client of a server whose model is given; all commands get it. The working folder is the test's."""

    def make(answers: Model = model, **told: Any) -> FakeClient:
        client = FakeClient(answers)
        client.told = told
        monkeypatch.setattr(populations, "PopulationClient", lambda base_url: client)
        return client

    monkeypatch.chdir(tmp_path)
    return make


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["ctr", *arguments])


def line(result: Result) -> dict[str, Any]:
    assert result.exit_code == 0, result.exception
    found: dict[str, Any] = json.loads(result.stdout.splitlines()[-1])
    return found


def words(result: Result) -> str:
    """What a terminal shows, whatever the columns' widths."""
    return " ".join(result.stdout.split())


def report(folder: str = "runs/job") -> dict[str, Any]:
    found: dict[str, Any] = json.loads((Path(folder) / "report.json").read_text())
    return found


def test_explanations_that_cannot_be_read_are_people_without_an_answer(serve: Any) -> None:
    texts = iter(['{"reasoning": "fits", "will_click": true, "confidence": 80}', "I would", '{"reasoning": "no"}'])
    serve(lambda system, user: {"text": next(texts), "finish_reason": "length"})
    result = run("predict", "--ad", "x", "--mode", "explain", "--population-size", "3")
    assert isinstance(result.exception, ServerUnavailable)
    assert "2 of 3 people have no answer that could be read" in str(result.exception)
    found = json.loads(result.stdout.splitlines()[-1])
    assert (found["people"], found["answered"], found["ctr"]) == (3, 1, 0.8)
    assert "label_swap_bias_before" not in found
    assert report()["mean_label_mass"] is None
    assert "2 of 3 people have no answer" in Path("runs/job/report.html").read_text()
    assert Path("runs/job/results.csv").read_text().count("not JSON of the schema") == 2


@pytest.fixture
def calibration(tmp_path: Path) -> str:
    ads = [HistoricAd(ad=f"old {i}", platform="facebook", impressions=50_000, clicks=200 + 20 * i) for i in range(6)]
    made = calibrate(ads, np.linspace(0.3, 0.5, 6), Source(model="m", workload="ctr/v2"))
    save_calibration(made, tmp_path / "calibration.json")
    return "calibration.json"


def test_a_calibrated_rate_is_the_headline_everywhere_and_the_models_own_stands_beside(
    serve: Any, calibration: str
) -> None:
    serve()
    raw = line(run("--ad", "x", "--population-size", "200", "--json"))["ctr"]
    shown = run("--ad", "x", "--population-size", "200", "--calibration", calibration)
    found = line(shown)
    assert found["ctr_raw"] == raw > 0.3
    assert 0.003 < found["ctr"] < 0.008
    figures = report()
    assert figures["ctr"] == figures["calibrated"]["ctr"] == pytest.approx(found["ctr"], abs=1e-6)
    assert figures["expected_clicks"] == pytest.approx(200 * figures["ctr"])
    assert f"CTR, calibrated │ {figures['ctr']:.2%}" in words(shown)
    assert f"CTR by the model │ {raw:.2%}" in words(shown)
    page = Path("runs/job/report.html").read_text()
    assert page.index("CTR, calibrated") < page.index("CTR by the model")


def test_a_calibration_of_other_prompts_is_refused_before_anybody_is_asked(serve: Any, calibration: str) -> None:
    client = serve()
    for options in (["--mode", "explain"], ["--ad-platform", "tiktok"]):
        result = run("--ad", "x", *options, "--calibration", calibration)
        assert isinstance(result.exception, BadSettings)
    assert client.specs == []


def test_people_are_counted_as_people_and_rows_as_rows(serve: Any) -> None:
    serve(rows_per_s=80.0, run_s=0.5, rows_by_replica={"r": 80}, replicas_chosen=1)
    shown = run("--ad", "x", "--population-size", "40", "--swap", "order")
    found = line(shown)
    assert (found["rows"], found["ok"], found["people"], found["answered"]) == (80, 80, 40, 40)
    for text in (
        "total profiles │ 40 ",
        "answered / invalid / failed │ 80 / 0 / 0 of 80 rows",
        "completed by r │ 80 rows",
        "(40.0 profiles/s)",
    ):
        assert text in words(shown)
    assert "(40.0 profiles/s)" in Path("runs/job/report.html").read_text()


def test_without_a_price_nothing_is_said_of_cost_and_a_small_one_is_not_zero(serve: Any) -> None:
    serve()
    shown = run("--ad", "x", "--population-size", "4", "--price", "0")
    assert "cost" not in shown.stdout
    assert (report()["cost"], report()["cost_per_1000"]) == (None, None)
    assert "cost per 1,000" not in Path("runs/job/report.html").read_text()
    serve(cost=0.00001, price={"replica_hour": 0.1})
    shown = run("--ad", "x", "--population-size", "4")
    assert "$1.0e-05 at $0.1 per replica-hour" in shown.stdout
    assert "$0.0000" not in shown.stdout + Path("runs/job/report.html").read_text()


def test_a_weighted_samples_clicks_are_its_rate_times_its_people(serve: Any, tmp_path: Path) -> None:
    serve()
    (tmp_path / "people.csv").write_text("gender,w\nFemale,3\nMale,1\n")
    found = line(run("--ad", "x", "--profiles", "people.csv", "--weights", "w"))
    assert found["ctr"] == pytest.approx((3 * expit(0.5) + expit(-1.5)) / 4, abs=1e-6)
    assert report()["expected_clicks"] == pytest.approx(2 * report()["ctr"])
    assert report()["ctr_low"] < report()["ctr"] < report()["ctr_high"]


def test_a_simulated_run_says_so_in_terminal_json_and_page(serve: Any) -> None:
    serve(simulated=True)
    shown = run("--ad", "x", "--population-size", "4")
    assert line(shown)["simulated"] is True
    assert "SIMULATED ENGINE" in shown.stdout
    assert SIMULATED in Path("runs/job/report.html").read_text()


def test_a_job_is_resumed_with_its_own_study(serve: Any) -> None:
    client = serve()
    run("--ad", "A phone", "--population-size", "7", "--seed", "3")
    found = line(run("--resume", "job", "--out", "again"))
    assert found["people"] == 7
    assert report("again/job")["seed"] == 3
    assert len(client.specs) == 1


def test_a_job_of_a_comparison_is_no_study_to_resume(serve: Any) -> None:
    serve()
    run("compare", "--ad", "a", "--ad", "b", "--population-size", "4")
    assert "was not submitted by `serve-app ctr predict`" in str(run("--resume", "job").exception)


def test_jobs_of_a_comparison_belong_together_and_two_comparisons_leave_two_folders(serve: Any) -> None:
    client = serve(simulated=True)
    ids = []
    for _ in range(2):
        shown = run("compare", "--ad", "a", "--ad", "b", "--population-size", "20", "--sequential", "10")
        found = line(shown)
        ids.append(found["id"])
        assert found["simulated"] is True
        assert "SIMULATED ENGINE" in shown.stdout
        assert SIMULATED in (Path("runs") / found["id"] / "report.html").read_text()
    assert len(client.specs) == 8
    assert [spec.metadata["group"] for spec in client.specs] == [ids[0]] * 4 + [ids[1]] * 4
    assert len(set(ids)) == 2
    assert {path.name for path in Path("runs").iterdir()} == set(ids)


def test_a_simulated_calibration_says_so(serve: Any, tmp_path: Path) -> None:
    rows = "".join(f"Ad {i},facebook,10000,{100 + 10 * i}\n" for i in range(3))
    (tmp_path / "ads.csv").write_text(f"ad,platform,impressions,clicks\n{rows}")
    client = serve(simulated=True)
    shown = run("calibrate", "--ads", "ads.csv", "--population-size", "10")
    assert line(shown)["simulated"] is True
    assert "SIMULATED ENGINE" in shown.stdout
    assert SIMULATED in Path("calibration.html").read_text()
    assert len({spec.metadata["group"] for spec in client.specs}) == 1


def test_a_comparison_may_be_answered_by_a_provider(serve: Any) -> None:
    client = serve()
    line(run("compare", "--ad", "a", "--ad", "b", "--population-size", "4", "--provider", "openai", "--model", "m"))
    assert client.spec.provider is not None
    assert client.spec.provider.base_url == "https://api.openai.com/v1"


def test_the_people_of_a_comparison_are_those_of_a_study(serve: Any) -> None:
    client = serve()
    run("compare", "--ad", "a", "--ad", "b", "--population-size", "5", "--seed", "9")
    assert [row.custom_id for row in client.asked] == [person.id for person in generate_profiles(5, 9)]
    assert client.asked[0].messages[1]["content"] == generate_profiles(5, 9)[0].description
