"""`serve-app icm`: labels by internal coherence on a running server; and the serving presets that go with it."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.progress import track

from serve_app import extras
from serve_app.cli.common import DEFAULT_URL, BaseUrl, console
from serve_app.errors import BadSettings, ServeAppError

if TYPE_CHECKING:
    from serve_app.workloads.icm.evaluation.gold import Accuracy, Gold
    from serve_app.workloads.icm.examples.dataset import Dataset, LabelWords
    from serve_app.workloads.icm.report import Report
    from serve_app.workloads.icm.schedule import SearchSettings
    from serve_app.workloads.icm.scoring.protocol import Scorer
    from serve_app.workloads.icm.search.finding import Finding
    from serve_app.workloads.icm.search.runs import Run

PRESETS = {"8B": "llama-3.1-8b", "70B": "llama-3.1-70b", "405B": "llama-3.1-405b"}


def icm(
    testbed: Annotated[str, typer.Option(help="reviews or claims (bundled); truthfulqa, gsm8k, alpaca or text, with "
                                              "--data; or a JSONL file.")] = "reviews",
    data: Annotated[Path | None, typer.Option(help="The testbed's rows: JSONL, a JSON array, CSV or Excel.")] = None,
    gold: Annotated[Path | None, typer.Option(help="Gold labels, JSONL of id and label; for evaluation only.")] = None,
    words: Annotated[str, typer.Option(help="Label words, the one for 0 first: negative,positive.")] = "",
    variant: Annotated[str, typer.Option(help="paper, or original for its published code's.")] = "paper",
    alpha: Annotated[float | None, typer.Option(help="First weight of predictability: 50, original 30.")] = None,
    fixed_alpha: Annotated[bool, typer.Option("--fixed_alpha", help="Do not lower it while all is rejected.")] = False,
    iterations: Annotated[int, typer.Option("--K", min=1, help="Iterations.")] = 3000,
    batch_size: Annotated[int, typer.Option("--batch_size", min=1, help="Examples, all scored in one call.")] = 256,
    num_seed: Annotated[int, typer.Option("--num_seed", min=1, help="Examples that begin with a random label.")] = 8,
    seed: Annotated[int, typer.Option("--seed", min=0)] = 0,
    speculate: Annotated[int, typer.Option(min=0, help="Later proposals scored with one, at most.")] = 0,
    model: Annotated[str | None, typer.Option(help="Served model; default: the one that is served.")] = None,
    baselines: Annotated[bool, typer.Option(help="Also run the five baselines; needs gold labels.")] = True,
    shots: Annotated[int, typer.Option(min=1, help="Demonstrations of the few-shot baselines.")] = 32,
    baseline_seeds: Annotated[int, typer.Option("--baseline_seeds", min=1, help="Draws of demonstrations.")] = 3,
    out: Annotated[Path, typer.Option(help="Folder of the run; goes on with one that is there.")] = Path("runs/icm"),
    resume: Annotated[Path | None, typer.Option(help="Folder of a run to go on with, by its own settings.")] = None,
    cluster: Annotated[bool, typer.Option("--cluster", help="Replicas by handle, from inside the cluster.")] = False,
    provider_url: Annotated[str | None, typer.Option(help="External OpenAI-compatible endpoint, with /v1.")] = None,
    provider_key_env: Annotated[str, typer.Option(help="Server's environment variable with its key.")] = "",
    requests_per_minute: Annotated[float | None, typer.Option(help="The provider's limit.")] = None,
    tokens_per_minute: Annotated[float | None, typer.Option(help="The provider's limit.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print only the JSON line.")] = False,
    base_url: BaseUrl = DEFAULT_URL,
) -> None:  # fmt: skip
    """Label a dataset by the model's own coherence, without any given label (Wen et al. 2025)."""
    from serve_app.workloads.icm.search.runs import Run

    extras.require(extras.PLOTS)  # now, as the report comes last
    started = time.monotonic()
    asked: dict[str, Any] = {
        "testbed": testbed, "data": data and str(data.absolute()), "gold": gold and str(gold.absolute()),
        "words": words, "variant": variant, "alpha": alpha, "fixed_alpha": fixed_alpha, "K": iterations,
        "batch_size": batch_size, "num_seed": num_seed, "seed": seed, "speculate": speculate, "model": model,
        "baselines": baselines, "shots": shots, "baseline_seeds": baseline_seeds, "provider_url": provider_url,
        "provider_key_env": provider_key_env, "requests_per_minute": requests_per_minute,
        "tokens_per_minute": tokens_per_minute,
    }  # fmt: skip
    if resume is None:
        settings = _settings(asked)
    else:
        checkpoint = Run(resume).load()
        out, asked = resume, asked | checkpoint.asked
        settings = read_settings({**checkpoint.settings, "iterations": asked["K"], "speculate": asked["speculate"]})
    dataset = _dataset(asked)
    gold_labels = _gold(asked, dataset)  # told before the search if something is wrong with it, which is not given it
    with make_scorer(base_url, asked, cluster=cluster) as (score, name):
        output = Console(stderr=True, quiet=True) if as_json else console
        report = run_icm(asked, dataset, settings, Run(out, name), score, gold_labels, started, output)
    paths = report.write(out)
    figures = report.figures()
    if not as_json:
        console.print(as_table(report))
        console.print("results: " + ", ".join(map(str, paths)), markup=False)
    print(json.dumps({key: value for key, value in figures.items() if key != "asked"}), flush=True)


def icm_preset(size: Annotated[str, typer.Argument(help="8B, 70B or 405B.")]) -> None:
    """Print the Serve config file that goes with ICM on a model of that size."""
    if size not in PRESETS:
        raise BadSettings(f"there is no preset '{size}': use one of {', '.join(PRESETS)}")
    presets = files("serve_app.workloads.icm") / "presets"
    print((presets / f"{PRESETS[size]}.yaml").read_text(encoding="utf-8"), end="")


@contextmanager
def make_scorer(base_url: str, asked: dict[str, Any], *, cluster: bool) -> Iterator[tuple[Scorer, str]]:
    """Replicas by handle, or the server's populations, which an external provider may answer; and the model's name."""
    model, provider_url = asked["model"], asked["provider_url"]
    if cluster:
        from serve_app.client.replicas import ReplicaClient
        from serve_app.workloads.icm.scoring.scorers import ReplicaScorer

        if provider_url:
            raise BadSettings("--cluster calls our own replicas: leave out --provider-url")
        with ReplicaScorer(ReplicaClient.connect()) as scorer:
            yield scorer, scorer.model()
        return
    from serve_app.client.populations import PopulationClient
    from serve_app.workloads.icm.scoring.scorers import PopulationScorer

    client = PopulationClient(base_url)
    if not provider_url:
        served = model or next((replica.engine.model for replica in client.replicas()), "")
        yield PopulationScorer(client, **({"model": model} if model else {})), served
        return
    if not model:
        raise BadSettings("--provider-url: give the provider's model by --model")
    provider = {
        "base_url": provider_url,
        "model": model,
        "api_key_env": asked["provider_key_env"],
        "requests_per_minute": asked["requests_per_minute"],
        "tokens_per_minute": asked["tokens_per_minute"],
    }
    given = {name: value for name, value in provider.items() if value not in (None, "")}
    yield PopulationScorer(client, provider=given), f"{model} at {provider_url}"


def run_icm(
    asked: dict[str, Any],
    dataset: Dataset,
    settings: SearchSettings,
    run: Run,
    score: Scorer,
    gold: Gold | None,
    started: float,
    output: Console,
) -> Report:
    """Search, conclude, compare with gold labels where there are any."""
    from serve_app.workloads.icm.report import Report
    from serve_app.workloads.icm.scoring.preflight import preflight
    from serve_app.workloads.icm.search.finding import conclude
    from serve_app.workloads.icm.search.search import Search

    state = run.begin(settings, dataset)
    output.print(
        f"{len(dataset)} examples of {dataset.name}, {len(dataset.relations)} relations, {settings.variant} variant"
    )
    output.print(f"the longest prompt: {preflight(dataset, settings, score)}", markup=False)
    search = Search(dataset, settings, score, state)
    done = search.state.iteration
    steps = run.follow(search, asked)
    for _ in track(steps, "searching", total=settings.iterations - done, console=output, disable=output.quiet):
        pass
    finding = conclude(search)
    accuracies, curve = _judge(asked, dataset, score, finding, run, gold, output) if gold else ({}, [])
    return Report(asked, dataset, finding, run.steps(), accuracies, curve, round(time.monotonic() - started, 2))


def _dataset(asked: dict[str, Any]) -> Dataset:
    from serve_app.workloads.icm.examples.testbeds import load

    dataset = load(asked["testbed"], asked["data"] and Path(asked["data"]), words=_words(asked["words"]))
    return dataset.sample(asked["batch_size"], asked["seed"])


def _gold(asked: dict[str, Any], dataset: Dataset) -> Gold | None:
    """Those that were given, or the bundled data's own. Raises BadSettings where an example has none."""
    from serve_app.workloads.icm.evaluation.gold import Gold
    from serve_app.workloads.icm.examples.testbeds import BUNDLED

    path = Path(asked["gold"]) if asked["gold"] else BUNDLED / f"{asked['testbed']}.gold.jsonl"
    if not asked["gold"] and (asked["data"] or not path.is_file()):
        return None
    gold = Gold.read(path)
    gold.of(dataset)
    return gold


def _judge(
    asked: dict[str, Any], dataset: Dataset, score: Scorer, finding: Finding, run: Run, gold: Gold, output: Console
) -> tuple[dict[str, Accuracy], Sequence[tuple[int, float, int]]]:
    """Accuracies by method, and ICM's by iteration."""
    from serve_app.workloads.icm.evaluation.comparison import compare
    from serve_app.workloads.icm.evaluation.gold import accuracy, accuracy_by_iteration
    from serve_app.workloads.icm.report import ICM

    truth = gold.of(dataset)
    accuracies = {ICM: accuracy(bytes(label.label for label in finding.labels), truth)}
    if asked["baselines"]:

        def skipped(name: str, error: ServeAppError) -> None:
            output.print(f"{name} is left out: {error}", markup=False)

        seeds = range(asked["seed"], asked["seed"] + asked["baseline_seeds"])
        accuracies |= compare(dataset, score, truth, shots=asked["shots"], seeds=seeds, skipped=skipped)
    return accuracies, accuracy_by_iteration(run.load().start, run.steps(), gold)


def _settings(asked: dict[str, Any]) -> SearchSettings:
    names = ("variant", "alpha", "fixed_alpha", "num_seed", "seed", "speculate")
    return read_settings({"iterations": asked["K"], **{name: asked[name] for name in names}})


def read_settings(values: dict[str, Any]) -> SearchSettings:
    """Raises BadSettings naming the option."""
    from pydantic import ValidationError

    from serve_app.workloads.icm.schedule import SearchSettings

    try:
        settings = SearchSettings.model_validate(values)
    except ValidationError as error:
        problems = (f"--{one['loc'][0]} {one['input']}: {one['msg']}" for one in error.errors())
        raise BadSettings("; ".join(problems)) from error
    _ = settings.alphas  # names an unknown variant now
    return settings


def _words(words: str) -> LabelWords | None:
    from serve_app.workloads.icm.examples.dataset import LabelWords

    if not words:
        return None
    parts = [part.strip() for part in words.split(",")]
    if len(parts) != 2 or not all(parts) or parts[0] == parts[1]:
        raise BadSettings(f"--words '{words}': give two different words and a comma, the one for label 0 first")
    return LabelWords(f" {parts[0]}", f" {parts[1]}")


def as_table(report: Report) -> Any:
    """The accuracies and what the model itself makes of the labels."""
    from rich.table import Table

    finding = report.finding
    verdict = "they hold together" if finding.coherent else "THEY DO NOT HOLD TOGETHER"
    table = Table(
        title=f"confidence in the labels {finding.confidence:.2f}, shuffled {finding.shuffled_confidence:.2f} "
        f"(chance 0.50): {verdict}",
        title_justify="left",
    )
    for column in ("method", "accuracy", "95 % interval", "seeds"):
        table.add_column(column)
    for name, found in report.accuracies.items():
        table.add_row(name, f"{found.mean:.1%}", f"{found.low:.1%} to {found.high:.1%}", str(found.seeds))
    return table
