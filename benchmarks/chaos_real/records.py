"""Runs of several parts in one file, and their sums."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.chaos_real.run import Record

# A stack's end, which is no fault.
STOP = "stop"
COLUMNS = ["fault", "runs", "lost", "duplicated", "defaulted", "orphans", "without a row", "replicas back",
           "online errors", "online gap"]  # fmt: skip


def read(path: Path, *, simulated: bool) -> list[Record]:
    """The runs in a result file. Raises SystemExit if they are of other engines."""
    if not path.exists():
        return []
    result = json.loads(path.read_text())
    if result["simulated"] != simulated:
        raise SystemExit(f"{path} has runs of {'simulated' if result['simulated'] else 'real'} engines")
    return [Record(**one) for one in result["each"]]


def summary(records: Sequence[Record], *, simulated: bool, **about: Any) -> dict[str, Any]:
    runs = [one for one in records if one.fault != STOP]
    errors = sum((Counter(one.online_errors) for one in runs), Counter[str]())
    return {
        "faults": len({one.fault for one in runs}),
        "runs": len(runs),
        **{key: sum(getattr(one, key) for one in records) for key in ("lost", "duplicated", "defaulted")},
        "orphans": sum(len(one.orphans) for one in records),
        "unfinished": sum(not one.ended for one in runs),
        "recovery_s_max": _most(one.recovery_s for one in runs),
        "restored_s_max": _most(one.restored_s for one in runs),
        "online_requests": sum(one.online_requests for one in runs),
        "online_errors": errors.total(),
        "online_errors_by_kind": dict(errors),
        "simulated": simulated,
        **about,
        "by_fault": {name: _of_fault(records, name) for name in sorted({one.fault for one in records})},
        "each": [asdict(one) for one in records],
    }


def _of_fault(records: Sequence[Record], name: str) -> dict[str, Any]:
    runs = [one for one in records if one.fault == name]
    return {
        "runs": len(runs),
        **{key: sum(getattr(one, key) for one in runs) for key in ("lost", "duplicated", "defaulted")},
        "orphans": sum(len(one.orphans) for one in runs),
        **{key: _most(getattr(one, key) for one in runs) for key in ("recovery_s", "restored_s")},
        "online_errors": sum(sum(one.online_errors.values()) for one in runs),
        "online_gap_s": _most(one.online_gap_s for one in runs),
    }


def table(result: dict[str, Any]) -> list[list[str]]:
    return [[name, *map(_cell, figures.values())] for name, figures in result["by_fault"].items()]


def good(result: dict[str, Any]) -> bool:
    return not any(result[key] for key in ("lost", "duplicated", "defaulted", "orphans", "unfinished"))


def _most(values: Any) -> float | None:
    return max((value for value in values if value is not None), default=None)


def _cell(value: float | None) -> str:
    return "" if value is None else f"{value:g}" + (" s" if isinstance(value, float) else "")
