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
from serve_app.workloads.ctr.asking.predict import HIGH_CONFIDENCE, Prediction, rates
from serve_app.workloads.ctr.report.replicas import replica_work, speedup
from serve_app.workloads.ctr.statistics.calibration import CalibratedRate
from serve_app.workloads.ctr.statistics.estimate import ctr


def figures(
    status: JobStatus,
    predictions: list[Prediction],
    *,
    ad: str,
    platform: str,
    seed: int,
    results: pa.Table,
    rate: CalibratedRate | None = None,
    one_replica: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Everything that the report says: `people` are counted in people, `rows` in rows, of which a person may have
    several. Click-through, its interval and the expected clicks are those of the population that the people are a
    sample of, by their weights (`results`), and calibrated where there is a `rate`; `ctr_raw` is the model's own.

    The speed-up is modelled, or measured against `one_replica`, the figures of the same population's run on one.
    """
    found = rates(predictions)
    people, prompt_tokens = len(predictions), status.prompt_tokens
    own = _ctr(results)
    mean, low, high = (rate.ctr, rate.low, rate.high) if rate else own
    work = replica_work(results)
    gain = speedup(work, status.run_s, one_replica)
    raw = dict(zip(("ctr_raw", "ctr_raw_low", "ctr_raw_high"), own, strict=True)) if rate else {}
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
        "people": people,
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
        "people_per_s": status.rows_per_s * people / status.total if status.total else 0.0,
        "expected_clicks": (mean or 0.0) * found.answered,
        "clicks": found.clicks,
        "ctr": mean,
        "ctr_low": low,
        "ctr_high": high,
        **raw,
        "high_confidence_share": found.high_confidence_share,
        "mean_label_mass": found.mean_label_mass,
        "cached_token_share": status.cached_tokens / prompt_tokens if prompt_tokens else None,
        "price_per_replica_hour": status.price.replica_hour or None,
        "cost": status.cost,
        "cost_per_1000": status.cost / found.answered * 1000 if status.cost and found.answered else None,
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
        *_answered(r),
        ("replicas available / chosen", f"{r['replicas_available']} / {r['replicas']}"),
        (f"{_unit(r)} per replica", f"{r['rows_per_replica']:,} planned in equal shares"),
        *(_completed(r)),
        ("total time", f"{r['run_s']:.1f} s ({r['people_per_s']:.1f} profiles/s)"),
        *(_gain(r["speedup"])),
        ("predicted clicks", f"{r['expected_clicks']:,.1f} expected; {r['clicks']:,} profiles above 50 %{_own(r)}"),
        *_rates(r),
        (f"high confidence (≥ {HIGH_CONFIDENCE:.0%})", _percent(r["high_confidence_share"])),
        ("label mass (Yes + No)", _percent(r["mean_label_mass"])),
        ("prefix-cache hit share", _percent(r["cached_token_share"])),
        *_cost(r),
    ]


def _unit(r: dict[str, Any]) -> str:
    """What the job's counts count."""
    return "profiles" if r["rows"] == r["people"] else "rows"


def _answered(r: dict[str, Any]) -> Sequence[tuple[str, str]]:
    several = r["rows"] != r["people"]
    rows = f" of {r['rows']:,} rows" if several else ""
    people = [("profiles with an answer", f"{r['answered']:,}")] if several or r["answered"] != r["ok"] else []
    return [*people, ("answered / invalid / failed", f"{r['ok']:,} / {r['invalid']:,} / {r['failed']:,}{rows}")]


def _own(r: dict[str, Any]) -> str:
    return " before calibration" if "ctr_raw" in r else ""


def _rates(r: dict[str, Any]) -> Sequence[tuple[str, str]]:
    if "ctr_raw" not in r:
        return [("CTR", _interval(r, "ctr"))]
    return [("CTR, calibrated", _interval(r, "ctr")), ("CTR by the model", _interval(r, "ctr_raw"))]


def _cost(r: dict[str, Any]) -> Sequence[tuple[str, str]]:
    """Nothing where there is no price."""
    if not r["cost"]:
        return []
    at = f" at ${r['price_per_replica_hour']:g} per replica-hour" if r["price_per_replica_hour"] else ""
    each = [("cost per 1,000", dollars(r["cost_per_1000"]))] if r["cost_per_1000"] else []
    return [("cost", dollars(r["cost"]) + at), *each]


def dollars(amount: float) -> str:
    """Four decimals, and never $0.0000."""
    return f"${amount:,.4f}" if amount >= 0.00005 else f"${amount:.1e}"


def _completed(r: dict[str, Any]) -> Sequence[tuple[str, str]]:
    busy = {done["replica"]: done for done in r["replica_work"]}
    found = []
    for replica, rows in sorted(r["rows_by_replica"].items()):
        done = busy.get(replica)
        pace = f" in {done['busy_s']:.1f} s ({rows / done['busy_s']:.1f}/s)" if done and done["busy_s"] else ""
        found.append((f"completed by {replica}", f"{rows:,} {_unit(r)}{pace}"))
    return found


def _gain(gain: dict[str, Any] | None) -> Sequence[tuple[str, str]]:
    if gain is None:
        return []
    return [(f"speed-up over one replica ({gain['kind']})", f"{gain['factor']:.2f}×")]


def _interval(r: dict[str, Any], key: str) -> str:
    if r[key] is None:
        return "no row was answered"
    return f"{r[key]:.2%} (95 % interval {r[f'{key}_low']:.2%} to {r[f'{key}_high']:.2%})"


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
