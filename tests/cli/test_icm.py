import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from serve_app.cli import app
from serve_app.engine.options import check_options
from serve_app.errors import BadSettings
from serve_app.serving.launch.config import ServeConfig
from serve_app.spec import Provider
from serve_app.workloads.icm.evaluation.gold import Gold
from serve_app.workloads.icm.examples.testbeds import BUNDLED, load
from serve_app.workloads.icm.labelling import Labelling
from serve_app.workloads.icm.scoring import connect
from serve_app.workloads.icm.scoring.connect import ServedModel
from serve_app.workloads.icm.scoring.protocol import Scorer
from serve_app.workloads.report.page import SIMULATED
from tests.workloads.icm.models import Noise, Planted


def answered_by(monkeypatch: pytest.MonkeyPatch, score: Scorer, *, simulated: bool = False) -> None:
    @contextmanager
    def connected(_: str, *, model: str | None, **__: Any) -> Iterator[ServedModel]:
        yield ServedModel(score, model or "served", lambda: simulated)

    monkeypatch.setattr(connect, "connect", connected)


@pytest.fixture
def planted(monkeypatch: pytest.MonkeyPatch) -> None:
    data = load("reviews")
    model = Planted(data, Gold.read(BUNDLED / "reviews.gold.jsonl").of(data), known=0.8, pull=3.0, seed=0)

    answered_by(monkeypatch, model)


def invoke(*arguments: str) -> dict[str, Any]:
    result = CliRunner().invoke(app, ["icm", *arguments, "--json"], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    line: dict[str, Any] = json.loads(result.stdout.splitlines()[-1])
    return line


def test_the_users_flags_run_a_search_and_leave_jsonl_and_one_page(planted: None, tmp_path: Path) -> None:
    out = tmp_path / "run"
    line = invoke(
        "--testbed", "reviews", "--alpha", "50", "--K", "60", "--batch_size", "16", "--num_seed", "4", "--seed", "1",
        "--model", "m", "--shots", "8", "--baseline_seeds", "2", "--out", str(out),
    )  # fmt: skip
    assert line["iterations"] == 60
    assert set(line["accuracy"]) == {
        "ICM", "zero-shot", "chat", "random-label few-shot", "bootstrapped few-shot", "gold few-shot",
    }  # fmt: skip
    assert line["accuracy"]["gold few-shot"]["seeds"] == 2
    labels = [json.loads(row) for row in (out / "results.jsonl").read_text().splitlines()]
    assert len(labels) == 16
    assert all(row["word"] in ("negative", "positive") for row in labels)
    page = (out / "report.html").read_text()
    assert page.count("<svg") == 3
    assert "Accuracy by iteration" in page
    assert "bootstrapped few-shot" in page
    assert json.loads((out / "report.json").read_text())["asked"]["K"] == 60


def test_a_run_is_resumed_by_its_folder_with_its_own_settings(planted: None, tmp_path: Path) -> None:
    out = tmp_path / "run"
    options = ("--batch_size", "16", "--num_seed", "4", "--no-baselines")
    first = invoke("--K", "20", "--out", str(out), *options)
    assert (first["iterations"], set(first["accuracy"])) == (20, {"ICM"})
    assert invoke("--resume", str(out))["iterations"] == 20
    assert invoke("--K", "40", "--out", str(out), *options)["iterations"] == 40


def test_a_resumed_run_gets_more_iterations_and_refuses_what_would_make_it_another(
    planted: None, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    invoke("--iterations", "20", "--out", str(out), "--batch-size", "16", "--num-seed", "4", "--no-baselines")
    line = invoke("--resume", str(out), "--K", "40", "--batch_size", "16", "--baselines", "--shots", "4")
    assert line["iterations"] == 40
    assert len(line["accuracy"]) > 1
    for options, problem in (
        (["--alpha", "30"], "--alpha 30.0: the run in .* was begun with None"),
        (["--num_seed", "5"], "--num-seed 5: the run in .* was begun with 4"),
        (["--testbed", "claims"], "--testbed claims"),
        (["--K", "30"], "--iterations 30: the run in .* has made 40 iterations already"),
        (["--out", str(tmp_path)], "--out .*: not with --resume"),
        (["--concurrency", "2"], "--concurrency: only for an external --provider"),
        (["--model", "other"], "holds a run of model 'served', not 'other'"),
    ):
        result = CliRunner().invoke(app, ["icm", "run", "--resume", str(out), *options])
        assert isinstance(result.exception, BadSettings)
        assert re.search(problem, str(result.exception))
    assert invoke("--resume", str(out))["iterations"] == 40


def test_a_provider_of_a_run_is_its_own_at_a_resume_too(planted: None, tmp_path: Path) -> None:
    provider = ("--provider", "openai", "--model", "m", "--requests-per-minute", "9")
    invoke("--K", "5", "--batch_size", "16", "--num_seed", "4", "--no-baselines", "--out", str(tmp_path), *provider)
    again = Labelling.resume(tmp_path, {"concurrency": 3}).provider
    assert again == Provider(
        base_url="https://api.openai.com/v1", model="m", api_key_env="OPENAI_API_KEY", requests_per_minute=9,
        concurrency=3,
    )  # fmt: skip


def test_a_simulated_run_says_so_in_terminal_json_and_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answered_by(monkeypatch, Noise(), simulated=True)
    options = ("--K", "5", "--batch-size", "16", "--num-seed", "4", "--no-baselines", "--out", str(tmp_path))
    assert invoke(*options)["simulated"] is True
    assert SIMULATED in (tmp_path / "report.html").read_text()
    assert "SIMULATED ENGINE" in CliRunner().invoke(app, ["icm", *options]).stdout


def test_a_real_run_says_nothing_of_a_simulation(planted: None, tmp_path: Path) -> None:
    options = ("--K", "5", "--batch-size", "16", "--num-seed", "4", "--no-baselines", "--out", str(tmp_path))
    line = invoke(*options)
    assert (line["simulated"], line["model"]) == (False, "served")
    assert "SIMULATED" not in (tmp_path / "report.html").read_text() + CliRunner().invoke(app, ["icm", *options]).stdout


def test_a_run_of_another_model_is_not_gone_on_with(planted: None, tmp_path: Path) -> None:
    options = ("--batch_size", "16", "--num_seed", "4", "--no-baselines", "--K", "20", "--out", str(tmp_path))
    invoke("--model", "a", *options)
    result = CliRunner().invoke(app, ["icm", "--model", "b", *options])
    assert "holds a run of model 'a', not 'b'" in str(result.exception)
    assert invoke("--model", "a", *options)["iterations"] == 20


def test_gold_labels_that_cannot_be_read_are_told_before_the_search(planted: None, tmp_path: Path) -> None:
    (tmp_path / "gold.jsonl").write_text('{"id": "hotel-1-1", "label": 1}')
    for gold in ("nowhere.jsonl", "gold.jsonl"):
        result = CliRunner().invoke(app, ["icm", "--gold", str(tmp_path / gold), "--out", str(tmp_path / "run")])
        assert gold in str(result.exception) or "no gold label" in str(result.exception)
        assert not (tmp_path / "run").exists()


def test_own_rows_without_gold_get_labels_and_no_accuracy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answered_by(monkeypatch, Noise())
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps({"text": f"<b>{i}</b> is"}) + "\n" for i in range(12)))
    line = invoke("--testbed", str(rows), "--words", "bad,good", "--K", "20", "--out", str(tmp_path / "run"))
    assert (line["examples"], line["accuracy"], line["label_words"]) == (12, {}, ["bad", "good"])
    assert line["coherent"] is False
    page = (tmp_path / "run" / "report.html").read_text()
    assert "do not hold together" in page
    assert "&lt;b&gt;0&lt;/b&gt; is" in page


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["--testbed", "nothing"], "--testbed 'nothing' is unknown"),
        (["--words", "same,same"], "--words 'same,same': give two different words"),
        (["--variant", "mine"], "--variant 'mine' is unknown"),
        (["--alpha", "-1"], "--alpha -1.0: Input should be greater than 0"),
        (["--provider-url", "https://x/v1"], "--model: name the provider's model"),
        (["--provider", "https://x/v1", "--model", "m", "--cluster"], "--cluster calls our own replicas"),
        (["--provider", "openia", "--model", "m"], "--provider 'openia' is unknown"),
        (["--requests-per-minute", "3"], "--requests-per-minute: only for an external --provider"),
    ],
)
def test_wrong_arguments_are_named(arguments: list[str], problem: str, tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["icm", *arguments, "--out", str(tmp_path)])
    assert result.exit_code != 0
    assert problem in str(result.exception)


@pytest.mark.parametrize("size", ["8B", "70B", "405B"])
def test_a_preset_is_a_config_file_that_the_installed_vllm_understands(size: str, tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(CliRunner().invoke(app, ["icm", "preset", size]).stdout)
    assert CliRunner().invoke(app, ["icm-preset", size]).stdout == path.read_text()  # its name before
    (engine,) = ServeConfig.load(path).engines
    options = engine.settings.engine
    check_options(options)
    assert options["enable_prefix_caching"]
    assert (options["max_num_seqs"], options["max_num_batched_tokens"]) == (256, 32768)
    assert (options.get("nnodes", 1) > 1) == (size == "405B")


def test_an_unknown_preset_names_the_known_ones() -> None:
    assert "8B, 70B, 405B" in str(CliRunner().invoke(app, ["icm-preset", "7B"]).exception)
