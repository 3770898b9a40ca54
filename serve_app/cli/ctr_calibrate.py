"""`serve-app ctr calibrate`: a calibration from historic ads."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from serve_app.cli.common import DEFAULT_URL, BaseUrl, Json, Open, connect, output_of, tell_files
from serve_app.cli.ctr_options import follow_jobs
from serve_app.cli.provider import OWN_REPLICAS, ProviderOptions, provider_options


@provider_options
def calibrate(
    ads: Annotated[Path, typer.Option("--ads", help="CSV, YAML or JSON with ad, platform, impressions, clicks.")],
    population_size: Annotated[int, typer.Option("--population-size", min=2, help="People per ad.")] = 1000,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Seed of the population.")] = 42,
    answering: ProviderOptions = OWN_REPLICAS,
    out: Annotated[Path, typer.Option("--out", help="File to write; its report goes beside it.")] = Path(
        "calibration.json"
    ),
    base_url: BaseUrl = DEFAULT_URL,
    open_page: Open = False,
    as_json: Json = False,
) -> None:
    """Learn from historic ads how a predicted click-through becomes a real one; `--calibration` applies it."""
    client = connect(base_url)
    from serve_app.workloads.ctr.calibrate import CalibrationStudy, write_calibration
    from serve_app.workloads.ctr.statistics.history import read_history

    output = output_of(as_json)
    job = answering.job_fields()
    study = CalibrationStudy(history=read_history(ads), size=population_size, seed=seed)
    found = follow_jobs(client, output, lambda progress: study.run(client, progress, **job))
    paths = write_calibration(found, out)
    curve, simulated = found.curve, found.source.simulated
    mark = " (SIMULATED ENGINE)" if simulated else ""
    output.print(f"{curve.method} from {len(found.ads)} ads; ad error {curve.ad_error:.2f} logits{mark}")
    tell_files(paths, output, open_page=open_page)
    line = {"method": curve.method, "ads": len(found.ads), "ad_error": round(curve.ad_error, 6), "simulated": simulated}
    print(json.dumps(line), flush=True)
