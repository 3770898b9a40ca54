"""`serve-app ctr compare`: two or more ads on the same people."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from serve_app.cli.common import DEFAULT_URL, BaseUrl, console

if TYPE_CHECKING:
    from serve_app.workloads.ctr.statistics.experiment import Comparison
    from serve_app.workloads.ctr.trial import RunPopulation


def compare(
    ad: Annotated[list[str], typer.Option("--ad", help="Text of an ad; once for each.")],
    ad_platform: Annotated[list[str] | None, typer.Option("--ad-platform", help="Once for each; facebook.")] = None,
    population_size: Annotated[int, typer.Option("--population-size", min=2, help="People.")] = 1000,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Seed of the population.")] = 42,
    calibration: Annotated[Path | None, typer.Option(help="File of `serve-app ctr calibrate`.")] = None,
    sequential: Annotated[
        int | None, typer.Option(min=1, metavar="ROWS", help="Stop when decided; look after so many people.")
    ] = None,
    indifference: Annotated[
        float, typer.Option(min=0, help="With --sequential: difference of CTR that does not matter, as a share.")
    ] = 0.0,
    smallest: Annotated[
        float | None, typer.Option(min=0, help="Size the sample for this difference, not the observed one.")
    ] = None,
    level: Annotated[float, typer.Option(min=0.5, max=0.999, help="Of the intervals.")] = 0.95,
    power: Annotated[float, typer.Option(min=0.5, max=0.999, help="For the sample size.")] = 0.8,
    out: Annotated[Path, typer.Option("--out", help="Folder of the report.")] = Path("runs/compare"),
    base_url: BaseUrl = DEFAULT_URL,
    as_json: Annotated[bool, typer.Option("--json", help="Print only the JSON line.")] = False,
) -> None:
    """Compare ads on the same population: difference with interval, win probability, segments, sample size."""
    from serve_app.cli.ctr_run import population_run
    from serve_app.client.populations import PopulationClient
    from serve_app.client.progress import JobProgress

    output = Console(stderr=True, quiet=True) if as_json else console
    with JobProgress(output) as progress:
        run = population_run(PopulationClient(base_url), seed=seed, on_status=progress)
        found, extra = run_compare(
            run,
            ads=ad,
            platforms=ad_platform or ["facebook"],
            size=population_size,
            seed=seed,
            calibration_file=calibration,
            batch=sequential,
            indifference=indifference,
            smallest=smallest,
            level=level,
            power=power,
            out=out,
        )
    output.print(as_table(found))
    output.print(f"results: {', '.join(extra['files'])}", markup=False)
    print(json.dumps(summary(found) | {"rows_saved": extra["rows_saved"]}), flush=True)


def run_compare(
    run: RunPopulation,
    *,
    ads: list[str],
    platforms: list[str],
    size: int,
    seed: int,
    calibration_file: Path | None,
    batch: int | None,
    indifference: float,
    smallest: float | None,
    level: float,
    power: float,
    out: Path,
) -> tuple[Comparison, dict[str, Any]]:
    """Run the experiment and write comparison.json, report.html and each arm's results as Parquet to `out`; the
    comparison, and `files` and `rows_saved`."""
    from serve_app.workloads.ctr.asking.prompts import WORKLOAD
    from serve_app.workloads.ctr.report.figures import write_files
    from serve_app.workloads.ctr.report.page_compare import compare_page
    from serve_app.workloads.ctr.statistics.calibration import load_calibration, source_of
    from serve_app.workloads.ctr.statistics.experiment import compare as compare_results
    from serve_app.workloads.ctr.trial import name_arms, run_sequential, run_trial
    from serve_app.workloads.report.page import write_page

    arms = name_arms(ads, platforms)
    calibration = load_calibration(calibration_file) if calibration_file else None
    if batch is None:
        trial = run_trial(arms, run, size)
    else:
        trial = run_sequential(arms, run, size, batch=batch, alpha=1 - level, indifference=indifference)
    source = source_of(trial.results.values(), WORKLOAD)
    if calibration is not None:
        for arm in arms.values():
            calibration.check(source, arm.platform)
    look = trial.looks[-1] if trial.looks else None
    found = compare_results(
        trial.results, calibration=calibration, level=level, power=power, smallest=smallest, look=look
    )
    provenance = [("model", source.model), ("prompts", source.workload), ("seed of the population", str(seed))]
    page = compare_page(
        found, arms, provenance=provenance, simulated=source.simulated, calibration=calibration, looks=trial.looks
    )
    report = {"arms": {name: asdict(arm) for name, arm in arms.items()}, "seed": seed, "source": source.model_dump()}
    files = write_files(out, dict(trial.results), "comparison.json", report | asdict(found))
    files.append(write_page(page, out / "report.html"))
    return found, {"files": [str(path) for path in files], "rows_saved": trial.rows_saved}


def as_table(found: Comparison) -> Table:
    """The comparison for a terminal."""
    verdict = f"{found.winner} wins" if found.winner else "undecided"
    covers = "people drawn, calibration and ad error" if found.calibrated else "people drawn, not the model's error"
    table = Table("pair", "difference", f"{found.level:.0%} interval", "win probability", "people needed", "verdict")
    table.title, table.title_justify = f"{verdict} ({found.rows:,} people each; intervals: {covers})", "left"
    for c in found.contrasts:
        middle, low, high = c.calibrated or (c.difference.mean, c.difference.low, c.difference.high)
        table.add_row(
            f"{c.second} − {c.first}",
            "–" if middle is None else f"{100 * middle:+.2f} points",
            "–" if low is None or high is None else f"{100 * low:+.2f} to {100 * high:+.2f}",
            f"{c.win_probability:.1%}",
            "–" if c.rows_needed is None else f"{c.rows_needed:,}",
            f"{c.winner} wins" if c.winner else "undecided",
        )
    return table


def summary(found: Comparison) -> dict[str, Any]:
    """The JSON line."""
    return {
        "winner": found.winner,
        "rows": found.rows,
        "dropped": found.dropped,
        "calibrated": found.calibrated,
        "ctr": {arm.ad: arm.calibrated.ctr if arm.calibrated else arm.score.mean for arm in found.arms},
        "best_probability": {arm.ad: arm.best_probability for arm in found.arms},
    }
