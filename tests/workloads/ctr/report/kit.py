"""Figures and results of made-up runs."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa

from serve_app.spec import JobStatus
from serve_app.workloads.ctr.asking.predict import Prediction
from serve_app.workloads.ctr.report import figures as report
from serve_app.workloads.ctr.statistics.calibration import CalibratedRate, Source
from tests.workloads.ctr.made_up import results

AD = 'Only $99 & "free" <script>alert(1)</script>'
SOURCE = Source(model="m", workload="ctr/v2")


def people(rows: int = 60, gap: float = 0.0) -> pa.Table:
    rng = np.random.default_rng(0)
    chances = np.clip(rng.beta(2, 6, rows) + gap, 0, 1)
    chances[5] = np.nan
    cities = rng.choice(["x", "$y$", "<z>"], rows)
    return results(
        chances, age=rng.integers(18, 80, rows).tolist(), city=cities, interests=[["a", "b"], ["a"], []] * (rows // 3)
    )


def figures(
    table: pa.Table, *, simulated: bool = False, rate: CalibratedRate | None = None, **changes: Any
) -> dict[str, Any]:
    status = JobStatus.model_validate({
        "id": "job-1", "state": "completed", "message": "", "simulated": simulated, "model": "m", "workload": "ctr/v2",
        "total": table.num_rows, "ok": table.num_rows - 1, "invalid": 0, "failed": 1, "replicas_available": 2,
        "replicas_chosen": 2, "rows_per_replica": 30, "rows_by_replica": {"replica-0": 30, "replica-1": 30},
        "tensor_parallel_size": 2, "run_s": 40.0, "rows_per_s": 1.5, "prompt_tokens": 10, "cached_tokens": 7,
        "price": {"replica_hour": 0.1}, "cost": 0.0022, **changes,
    })  # fmt: skip
    predictions = [Prediction(p, None if p is None else 0.9) for p in table["p_click"].to_pylist()]
    return report.figures(status, predictions, ad=AD, platform="tiktok", seed=42, results=table, rate=rate)
