"""The independent check of a job's store finds each kind of fault, and nothing where there is none."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.fs
import pyarrow.parquet as pq
import pytest

from benchmarks.chaos.exactly_once import compare, count_committed, logprobs_of, read_results

LABELS = ("Yes", "No")
EXPECTED = {f"row-{i}": {"Yes": -0.5 - i, "No": -1.5 - i} for i in range(3)}


def row(i: int, **changed: Any) -> dict[str, Any]:
    return {"custom_id": f"row-{i}", "status": "ok", "value": json.dumps({"logprobs": EXPECTED[f"row-{i}"]})} | changed


def value(yes: float, no: float) -> str:
    return json.dumps({"logprobs": {"Yes": yes, "No": no}})


@pytest.mark.parametrize(
    ("rows", "faults"),
    [
        ([row(0), row(1), row(2)], {}),
        ([row(0), row(1)], {"lost": 1}),
        ([row(0), row(1), row(2), row(2)], {"duplicated": 1}),
        ([row(0), row(1), row(2), row(2, custom_id="row-9")], {"duplicated": 1}),
        ([row(0), row(1), row(2, status="failed", value=None)], {"defaulted": 1}),
        ([row(0), row(1), row(2, value=value(0.0, 0.0))], {"defaulted": 1}),
        ([row(0), row(1), row(2, value=value(float("nan"), -3.5))], {"defaulted": 1}),
        ([row(0), row(1), row(2, value=json.dumps({"logprobs": {"Yes": -2.5}}))], {"defaulted": 1}),
        ([row(0), row(2, custom_id="row-1"), row(2)], {"defaulted": 1}),
        ([], {"lost": 3}),
    ],
)
def test_each_kind_of_fault_is_counted_once(rows: list[dict[str, Any]], faults: dict[str, int]) -> None:
    assert compare(rows, EXPECTED, LABELS) == {"lost": 0, "duplicated": 0, "defaulted": 0} | faults


def test_values_may_differ_by_as_much_as_rounding_makes_them() -> None:
    rows = [row(0), row(1), row(2, value=value(-2.51, -3.49))]
    assert compare(rows, EXPECTED, LABELS, tolerance=0.02)["defaulted"] == 0
    assert compare(rows, EXPECTED, LABELS, tolerance=0.005)["defaulted"] == 1


def test_only_what_a_manifest_names_is_read(tmp_path: Path) -> None:
    segments = tmp_path / "job" / "parts" / "0000" / "segments"
    segments.mkdir(parents=True)
    for name, i in (("named", 0), ("left-over", 1)):
        pq.write_table(pa.Table.from_pylist([row(i)]), segments / name)
    (segments.parent / "manifest.json").write_text(json.dumps({"segments": [{"name": "named", "rows": 1}]}))
    store = pyarrow.fs.LocalFileSystem(), str(tmp_path / "job")
    assert [one["custom_id"] for one in read_results(*store)] == ["row-0"]
    assert count_committed(*store) == 1
    assert logprobs_of(read_results(*store)[0]) == EXPECTED["row-0"]
