"""`serve-app ctr compare`: two or more ads on the same people."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from serve_app.cli.common import DEFAULT_URL, BaseUrl, Json, Open, connect, output_of, tell_files
from serve_app.cli.ctr_options import follow_jobs
from serve_app.cli.provider import OWN_REPLICAS, ProviderOptions, provider_options

if TYPE_CHECKING:
    from serve_app.workloads.ctr.compare import CompareResult


@provider_options
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
    answering: ProviderOptions = OWN_REPLICAS,
    out: Annotated[
        Path, typer.Option("--out", help="Folder of the runs; results go to a folder named by the comparison's id.")
    ] = Path("runs"),
    base_url: BaseUrl = DEFAULT_URL,
    open_page: Open = False,
    as_json: Json = False,
) -> None:
    """Compare ads on the same population: difference with interval, win probability, segments, sample size."""
    client = connect(base_url)
    from serve_app.serving.launch.config import check_store
    from serve_app.workloads.ctr.compare import CompareStudy
    from serve_app.workloads.ctr.statistics.calibration import load_calibration

    output = output_of(as_json)
    job = answering.job_fields()
    study = CompareStudy(
        ads=tuple(ad), platforms=tuple(ad_platform or ["facebook"]), size=population_size, seed=seed,
        calibration=load_calibration(calibration) if calibration else None, batch=sequential,
        indifference=indifference, smallest=smallest, level=level, power=power,
    )  # fmt: skip
    check_store(out)
    found = follow_jobs(client, output, lambda progress: study.run(client, progress, **job))
    paths = found.write(out / found.id)
    output.print(as_table(found))
    tell_files(paths, output, open_page=open_page)
    print(json.dumps(found.summary()), flush=True)


def as_table(result: CompareResult) -> Table:
    found = result.comparison
    verdict = f"{found.winner} wins" if found.winner else "undecided"
    covers = "people drawn, calibration and ad error" if found.calibrated else "people drawn, not the model's error"
    table = Table("pair", "difference", f"{found.level:.0%} interval", "win probability", "people needed", "verdict")
    mark = ", SIMULATED ENGINE" if result.source.simulated else ""
    table.title, table.title_justify = f"{verdict} ({found.rows:,} people each; intervals: {covers}{mark})", "left"
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
