"""The report of a run: figures as a mapping, as a table for a terminal, and as files."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pa_parquet
from rich.table import Table

from serve_app.atomic import atomic_write
from serve_app.errors import StoreError
from serve_app.spec import JobStatus
from serve_app.workloads.ctr.asking.predict import HIGH_CONFIDENCE, Prediction, cost, rates
from serve_app.workloads.ctr.report.replicas import replica_work, speedup
from serve_app.workloads.ctr.statistics.estimate import ctr


def figures(
    status: JobStatus,
    predictions: list[Prediction],
    *,
    ad: str,
    platform: str,
    seed: int,
    price: float,
    results: pa.Table | None = None,
    one_replica: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Everything that the report says. `price` is dollars for a replica's hour, as the user stated it.

    With the `results` the times of the replicas and the speed-up are told too: modelled, or measured against
    `one_replica`, the figures of the same population's run on one replica.
    """
    found = rates(predictions)
    prompt_tokens = status.prompt_tokens
    # The same interval, but for a weighted sample, whose weights only the results have.
    mean, low, high = (found.ctr, found.ctr_low, found.ctr_high) if results is None else _ctr(results)
    work = [] if results is None else replica_work(results)
    gain = speedup(work, status.run_s, one_replica)
    return {
        "job_id": status.id,
        "state": status.state,
        "message": status.message,
        "simulated": status.simulated,
        "ad": ad,
        "platform": platform,
        "seed": seed,
        "model": status.model,
        "workload": status.workload,
        "people": len(predictions),
        "answered": found.answered,
        "rows": status.total,
        "ok": status.ok,
        "invalid": status.invalid,
        "failed": status.failed,
        "replicas_available": status.replicas_available,
        "replicas": status.replicas_chosen,
        "rows_per_replica": status.rows_per_replica,
        "rows_by_replica": status.rows_by_replica,
        "replica_work": [asdict(done) | {"rows_per_s": done.rows_per_s} for done in work],
        "speedup": gain and asdict(gain),
        "tp": status.tensor_parallel_size,
        "run_s": status.run_s,
        "rows_per_s": status.rows_per_s,
        "expected_clicks": found.expected_clicks,
        "clicks": found.clicks,
        "ctr": mean,
        "ctr_low": low,
        "ctr_high": high,
        "high_confidence_share": found.high_confidence_share,
        "mean_label_mass": found.mean_label_mass,
        "cached_token_share": status.cached_tokens / prompt_tokens if prompt_tokens else None,
        "price_per_replica_hour": price,
        **cost(status.run_s, status.replicas_chosen, price, found.answered),
    }


def _ctr(results: pa.Table) -> tuple[float | None, float | None, float | None]:
    whole = ctr(results)
    return whole.mean, whole.mean if whole.low is None else whole.low, whole.mean if whole.high is None else whole.high


def as_table(report: dict[str, Any]) -> Table:
    """The report for a terminal."""
    title = f"Click-through prediction{' (SIMULATED ENGINE)' if report['simulated'] else ''}"
    table = Table(title=title, show_header=False, title_justify="left")
    for name, value in lines(report):
        table.add_row(name, value)
    return table


def lines(r: dict[str, Any]) -> list[tuple[str, str]]:
    """The figures in words, as name and value."""
    return [
        ("job", f"{r['job_id']} ({r['state']})"),
        ("ad", f"{r['ad']} (on {r['platform']})"),
        ("model", f"{r['model']}, tensor parallel {r['tp']}"),
        ("total profiles", f"{r['people']:,} (seed {r['seed']})"),
        *([("people of a file", summary["text"])] if (summary := r.get("people_summary")) else []),
        ("answered / invalid / failed", f"{r['ok']:,} / {r['invalid']:,} / {r['failed']:,}"),
        ("replicas available / chosen", f"{r['replicas_available']} / {r['replicas']}"),
        ("profiles per replica", f"{r['rows_per_replica']:,} planned in equal shares"),
        *(_completed(r)),
        ("total time", f"{r['run_s']:.1f} s ({r['rows_per_s']:.1f} profiles/s)"),
        *(_gain(r["speedup"])),
        ("predicted clicks", f"{r['expected_clicks']:,.1f} expected; {r['clicks']:,} profiles above 50 %"),
        ("CTR", _interval(r)),
        (f"high confidence (≥ {HIGH_CONFIDENCE:.0%})", _percent(r["high_confidence_share"])),
        ("label mass (Yes + No)", _percent(r["mean_label_mass"])),
        ("prefix-cache hit share", _percent(r["cached_token_share"])),
        ("cost", f"${r['cost']:.4f} at ${r['price_per_replica_hour']:g} per replica-hour"),
        ("cost per 1,000", "-" if r["cost_per_1000"] is None else f"${r['cost_per_1000']:.4f}"),
    ]


def _completed(r: dict[str, Any]) -> Sequence[tuple[str, str]]:
    busy = {done["replica"]: done for done in r["replica_work"]}
    found = []
    for replica, rows in sorted(r["rows_by_replica"].items()):
        done = busy.get(replica)
        pace = f" in {done['busy_s']:.1f} s ({done['rows_per_s']:.1f}/s)" if done and done["busy_s"] else ""
        found.append((f"completed by {replica}", f"{rows:,}{pace}"))
    return found


def _gain(gain: dict[str, Any] | None) -> Sequence[tuple[str, str]]:
    if gain is None:
        return []
    return [(f"speed-up over one replica ({gain['kind']})", f"{gain['factor']:.2f}×")]


def _interval(r: dict[str, Any]) -> str:
    if r["ctr"] is None:
        return "no row was answered"
    return f"{r['ctr']:.2%} (95 % interval {r['ctr_low']:.2%} to {r['ctr_high']:.2%})"


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{share:.1%}"


def write(folder: Path, table: pa.Table, report: dict[str, Any]) -> list[Path]:
    """Write results.parquet, results.csv and report.json; their paths. Raises StoreError."""
    return write_files(folder, {"results": table}, "report.json", report)


def write_files(folder: Path, tables: Mapping[str, pa.Table], name: str, report: Mapping[str, Any]) -> list[Path]:
    """Write each table as Parquet and CSV under its name, and the report as JSON; their paths. Raises StoreError."""
    paths = []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for title, table in tables.items():
            paths += [folder / f"{title}.parquet", folder / f"{title}.csv"]
            with atomic_write(paths[-2]) as file:
                pa_parquet.write_table(table, file)
            with atomic_write(paths[-1]) as file:
                pa_csv.write_csv(_flat(table), file)
        paths.append(folder / name)
        with atomic_write(paths[-1]) as file:
            file.write(json.dumps(report, indent=1).encode() + b"\n")
    except OSError as error:
        raise StoreError(f"--out: cannot write {folder}: {error.strerror or error}") from error
    return paths


def _flat(table: pa.Table) -> pa.Table:
    """A cell of CSV is text: the members of a list are joined."""
    for i, field in enumerate(table.schema):
        if pa.types.is_list(field.type) or pa.types.is_large_list(field.type):
            lists = table[field.name].to_pylist()
            joined = [None if members is None else "; ".join(map(str, members)) for members in lists]
            table = table.set_column(i, field.name, pa.array(joined, pa.string()))
    return table
