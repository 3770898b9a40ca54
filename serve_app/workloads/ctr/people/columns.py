"""Click table columns besides attributes, which may not have these names."""

from __future__ import annotations

import pyarrow as pa

_TEXT, _COUNT, _REAL, _FLAG = pa.string(), pa.int64(), pa.float64(), pa.bool_()
# Fields of `schema.Outcome` without id and value.
PROVENANCE: dict[str, pa.DataType] = {
    "status": _TEXT,
    "content_hash": _TEXT,
    "error": _TEXT,
    "attempts": _COUNT,
    "replica": _TEXT,
    "model": _TEXT,
    "engine_version": _TEXT,
    "simulated": _FLAG,
    "prompt_tokens": _COUNT,
    "cached_tokens": _COUNT,
    "completion_tokens": _COUNT,
    "latency_ms": _REAL,
    "finished_at": _TEXT,
}
PREDICTION: dict[str, pa.DataType] = {
    "click": _FLAG,
    "p_click": _REAL,
    "confidence": _REAL,
    "label_mass": _REAL,
    "reasoning": _TEXT,
}
WEIGHT = "weight"
RESERVED = frozenset({"id", WEIGHT, "reused_from", *PREDICTION, *PROVENANCE})
