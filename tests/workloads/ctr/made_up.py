"""Made-up results with known preferences."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from serve_app.workloads.ctr.statistics.estimate import Floats


def results(chances: Floats | Sequence[float], **columns: Sequence[object] | Floats) -> pa.Table:
    """A run's results with those probabilities (NaN: no answer) and attributes."""
    p = np.asarray(chances, dtype=float)
    answered = ~np.isnan(p)
    own: dict[str, object] = {
        "id": [f"person-{i}" for i in range(len(p))],
        "p_click": pa.array(p, mask=~answered),
        "status": np.where(answered, "ok", "failed"),
        "replica": [f"replica-{i % 2}" for i in range(len(p))],
        "model": ["m"] * len(p),
        "engine_version": ["vllm 1"] * len(p),
        "simulated": [False] * len(p),
        "finished_at": [f"2026-01-01T00:00:{10 + i * 40 // len(p):02d}.000+00:00" for i in range(len(p))],
        "latency_ms": [1000.0] * len(p),
    }
    return pa.table(own | columns)
