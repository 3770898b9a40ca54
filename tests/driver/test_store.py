import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve_app.driver.store import Store
from serve_app.errors import BadSettings, JobNotFound, StoreError
from serve_app.schema import Outcome
from tests.fakes import rows

OUTCOME = Outcome(
    "row-0", "h", "ok", {"text": "a\u2028b\x85c\n"}, None, 1, "r", "m", "v", False, 1, 0, 1, 0.5, "2026-01-01T00:00:00"
)


@given(st.text(), st.sampled_from(["ok", "invalid", "failed"]))
def test_an_outcome_survives_json_whatever_its_text(text: str, status: str) -> None:
    outcome = replace(OUTCOME, status=status, value={"text": text})  # type: ignore[arg-type]
    line = outcome.to_json()
    assert Outcome.from_json(line) == outcome
    assert "\n" not in line


def test_what_is_committed_is_read_back_in_order(tmp_path: Path) -> None:
    job = Store(tmp_path).create("job-1", {"workload": "w"}, rows(3))
    job.commit([OUTCOME, replace(OUTCOME, custom_id="row-1")])
    job.commit([replace(OUTCOME, custom_id="row-2")])
    again = Store(tmp_path).open("job-1")
    assert [outcome.custom_id for outcome in again.outcomes()] == ["row-0", "row-1", "row-2"]
    assert next(iter(again.outcomes())) == OUTCOME
    assert again.rows() == rows(3)
    assert again.spec() == {"workload": "w"}


def test_a_segment_that_no_manifest_names_is_not_read(tmp_path: Path) -> None:
    job = Store(tmp_path).create("job-1", {}, rows(1))
    (job.folder / "segments" / "000001.jsonl").write_text(OUTCOME.to_json() + "\n")
    assert list(job.outcomes()) == []
    job.commit([replace(OUTCOME, custom_id="row-9")])
    assert [outcome.custom_id for outcome in job.outcomes()] == ["row-9"]


WRITER = """
import sys
from dataclasses import replace
from serve_app.driver.store import Store
from tests.driver.test_store import OUTCOME
job = Store(sys.argv[1]).open("job-1")
for i in range(10_000):
    job.commit([replace(OUTCOME, custom_id=f"{i}-{j}") for j in range(20)])
    print(i, flush=True)
"""


def test_sigkill_at_any_moment_loses_no_committed_row_and_tears_none(tmp_path: Path) -> None:
    root = Path(__file__).parents[2]
    for delay_s in (0.01, 0.03, 0.05, 0.08, 0.13):
        folder = tmp_path / str(delay_s)
        job = Store(folder).create("job-1", {}, rows(1))
        writer = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(folder)], stdout=subprocess.PIPE, text=True, cwd=root
        )
        assert writer.stdout is not None
        acknowledged = [int(writer.stdout.readline())]
        time.sleep(delay_s)
        os.kill(writer.pid, signal.SIGKILL)
        acknowledged += [int(line) for line in writer.stdout.read().split() if line]
        writer.wait()
        writer.stdout.close()
        found = [outcome.custom_id for outcome in job.outcomes()]
        segments = len(found) // 20
        assert segments >= acknowledged[-1] + 1  # the last may be committed and not yet acknowledged
        assert found == [f"{i}-{j}" for i in range(segments) for j in range(20)]


def test_an_unknown_job_is_named(tmp_path: Path) -> None:
    with pytest.raises(JobNotFound, match="no job 'nope'"):
        Store(tmp_path).open("nope")


@pytest.mark.parametrize("bad", ["../up", "a/b", "", "Upper", ".hidden"])
def test_a_job_id_cannot_leave_the_store(tmp_path: Path, bad: str) -> None:
    with pytest.raises(BadSettings, match="job id"):
        Store(tmp_path).open(bad)


def test_a_store_that_cannot_be_written_says_where(tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("a file, not a folder")
    with pytest.raises(StoreError, match="cannot write .*runs"):
        Store(tmp_path / "runs").create("job-1", {}, rows(1))


def test_a_manifest_that_cannot_be_read_says_where(tmp_path: Path) -> None:
    job = Store(tmp_path).create("job-1", {}, rows(1))
    manifest = json.loads((job.folder / "manifest.json").read_text())
    manifest["segments"].append({"name": "000007.jsonl", "rows": 1})
    (job.folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(StoreError, match=r"cannot read .*000007\.jsonl"):
        list(job.outcomes())
