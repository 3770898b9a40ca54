"""`serve-app ctr calibrate`: from historic ads and their observed click-through to a file that later runs apply."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from serve_app.cli.common import DEFAULT_URL, BaseUrl, console
from serve_app.errors import ServerUnavailable

if TYPE_CHECKING:
    from serve_app.workloads.ctr.statistics.calibration import Calibration
    from serve_app.workloads.ctr.trial import RunPopulation


def calibrate(
    ads: Annotated[Path, typer.Option("--ads", help="CSV, YAML or JSON with ad, platform, impressions, clicks.")],
    population_size: Annotated[int, typer.Option("--population-size", min=2, help="People per ad.")] = 1000,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Seed of the population.")] = 42,
    out: Annotated[Path, typer.Option("--out", help="File to write; its report goes beside it.")] = Path(
        "calibration.json"
    ),
    base_url: BaseUrl = DEFAULT_URL,
    as_json: Annotated[bool, typer.Option("--json", help="Print only the JSON line.")] = False,
) -> None:
    """Learn from historic ads how a predicted click-through becomes a real one; `--calibration` applies it."""
    from serve_app.cli.ctr_run import population_run
    from serve_app.client.populations import PopulationClient
    from serve_app.client.progress import JobProgress

    output = Console(stderr=True, quiet=True) if as_json else console
    with JobProgress(output) as progress:
        run = population_run(PopulationClient(base_url), seed=seed, on_status=progress)
        found = run_calibrate(run, ads, size=population_size, out=out)
    curve = found.curve
    output.print(f"{curve.method} from {len(found.ads)} ads; ad error {curve.ad_error:.2f} logits")
    output.print(f"results: {out}, {out.with_suffix('.html')}", markup=False)
    print(json.dumps({"method": curve.method, "ads": len(found.ads), "ad_error": round(curve.ad_error, 6)}), flush=True)


def run_calibrate(run: RunPopulation, ads: Path, *, size: int, out: Path) -> Calibration:
    """Score each historic ad on the same people, fit, and write the calibration and its page.

    Raises BadSettings for a wrong file of ads, ServerUnavailable for an ad that nobody answered.
    """
    import numpy as np

    from serve_app.workloads.ctr.asking.prompts import WORKLOAD
    from serve_app.workloads.ctr.report.page_calibrate import calibrate_page
    from serve_app.workloads.ctr.statistics import calibration as ctr_calibration
    from serve_app.workloads.ctr.statistics.estimate import ctr
    from serve_app.workloads.ctr.statistics.history import read_history
    from serve_app.workloads.report.page import write_page

    history = read_history(ads)
    results = [run(ad.ad, ad.platform, start=0, size=size) for ad in history]
    scores = [ctr(table).mean for table in results]
    for ad, score in zip(history, scores, strict=True):
        if score is None:
            raise ServerUnavailable(f"no person has an answer for the ad '{ad.ad}': run it again")
    source = ctr_calibration.source_of(results, WORKLOAD)
    found = ctr_calibration.calibrate(history, np.array(scores, dtype=float), source)
    ctr_calibration.save_calibration(found, out)
    write_page(calibrate_page(found), out.with_suffix(".html"))
    return found
