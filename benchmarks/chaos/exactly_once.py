"""What a job's store holds, read by pyarrow with nothing of serve_app, and compared with what was asked."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pyarrow.fs
import pyarrow.parquet as pq

Logprobs = Mapping[str, float]


def read_results(filesystem: Any, job: str) -> list[dict[str, Any]]:
    """Every committed row, straight from the files that the manifests name."""
    rows: list[dict[str, Any]] = []
    for part, manifest in _manifests(filesystem, job):
        for segment in manifest["segments"]:
            table = pq.read_table(f"{part}/segments/{segment['name']}", filesystem=filesystem)
            if table.num_rows != segment["rows"]:
                raise SystemExit(f"{segment} has {table.num_rows} rows")
            rows += table.to_pylist()
    return rows


def count_committed(filesystem: Any, job: str) -> int:
    """Rows that the manifests name; raises OSError where the store cannot be read, FileNotFoundError before any."""
    return sum(segment["rows"] for _, manifest in _manifests(filesystem, job) for segment in manifest["segments"])


def _manifests(filesystem: Any, job: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each part's path and manifest."""
    parts = filesystem.get_file_info(pyarrow.fs.FileSelector(f"{job}/parts"))
    for part in sorted(info.path for info in parts):
        with filesystem.open_input_stream(f"{part}/manifest.json") as file:
            yield part, json.loads(file.read())


def logprobs_of(row: Mapping[str, Any]) -> dict[str, float]:
    """A row's log-probability for each label; empty if it has none."""
    value = json.loads(row["value"]) if row["value"] else {}
    return value.get("logprobs") or {}


def compare(
    found: Sequence[Mapping[str, Any]],
    expected: Mapping[str, Logprobs | None],
    labels: Sequence[str],
    *,
    tolerance: float = 1e-9,
) -> Counter[str]:
    """Rows that are missing, that are there twice, and that have another value than the one computed for them.

    Log-probabilities may be `tolerance` apart. Where an expected value is None, only its form is checked: a finite
    log-probability for each label.
    """
    times = Counter(row["custom_id"] for row in found)
    faults: Counter[str] = Counter(lost=0, duplicated=0, defaulted=0)
    faults["lost"] = len(expected.keys() - times.keys())
    faults["duplicated"] = sum(n - 1 for n in times.values()) + len(times.keys() - expected.keys())
    for row in found:
        logprobs = logprobs_of(row)
        wanted = expected.get(row["custom_id"])
        good = row["status"] == "ok" and set(logprobs) == set(labels) and all(map(math.isfinite, logprobs.values()))
        if wanted is not None:
            good = good and all(abs(logprobs[label] - wanted[label]) <= tolerance for label in labels)
        faults["defaulted"] += not good
    return faults
