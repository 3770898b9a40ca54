import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from scipy.special import expit, logit

from serve_app.cli.ctr_calibrate import run_calibrate
from serve_app.cli.ctr_compare import as_table, run_compare, summary
from serve_app.errors import BadSettings
from tests.workloads.ctr.made_up import results

APPEAL = {"Buy now": -1.0, "Buy later": -1.4, **{f"old {i}": -2.0 + 0.3 * i for i in range(8)}}


def run(ad: str, platform: str, *, start: int, size: int) -> pa.Table:
    person = np.random.default_rng(0).normal(0, 0.5, 5000)[start : start + size]
    own = np.random.default_rng(len(ad)).normal(0, 0.1, 5000)[start : start + size]
    city = np.where(np.arange(start, start + size) % 2, "x", "y")
    return results(expit(APPEAL[ad] + person + own), city=city).set_column(
        0, "id", pa.array([f"person-{i}" for i in range(start, start + size)])
    )


@pytest.fixture
def calibration(tmp_path: Path) -> Path:
    rows = [f"old {i},facebook,90000,{round(90000 * expit(-3 + 0.8 * logit(expit(-2 + 0.3 * i))))}" for i in range(8)]
    (tmp_path / "ads.csv").write_text("\n".join(["ad,platform,impressions,clicks", *rows]))
    run_calibrate(run, tmp_path / "ads.csv", size=200, out=tmp_path / "calibration.json")
    return tmp_path / "calibration.json"


def asked(tmp_path: Path, **changes: object) -> dict[str, object]:
    settings: dict[str, object] = {
        "ads": ["Buy later", "Buy now"], "platforms": ["facebook"], "size": 400, "seed": 42, "calibration_file": None,
        "batch": None, "indifference": 0.0, "smallest": None, "level": 0.95, "power": 0.8, "out": tmp_path / "out",
    }  # fmt: skip
    return settings | changes


def test_the_better_ad_wins_and_files_say_so(tmp_path: Path) -> None:
    found, extra = run_compare(run, **asked(tmp_path))  # type: ignore[arg-type] # one mapping of all options
    assert summary(found)["winner"] == "B"
    assert {Path(path).name for path in extra["files"]} == {
        "A.parquet", "A.csv", "B.parquet", "B.csv", "comparison.json", "report.html",
    }  # fmt: skip
    written = json.loads((tmp_path / "out" / "comparison.json").read_text())
    assert written["arms"][1]["ad"] == "B"
    assert "B wins" in (tmp_path / "out" / "report.html").read_text()
    assert as_table(found).row_count == 1


def test_a_sequential_comparison_saves_rows(tmp_path: Path) -> None:
    found, extra = run_compare(run, **asked(tmp_path, size=4000, batch=100))  # type: ignore[arg-type]
    assert found.winner == "B"
    assert extra["rows_saved"] == 4000 - found.rows > 3000


def test_a_calibration_is_made_and_applied(tmp_path: Path, calibration: Path) -> None:
    found, _ = run_compare(run, **asked(tmp_path, calibration_file=calibration))  # type: ignore[arg-type]
    assert found.calibrated
    truth = {"A": expit(-3 + 0.8 * -1.4), "B": expit(-3 + 0.8 * -1.0)}
    assert summary(found)["ctr"] == pytest.approx(truth, rel=0.1)
    assert "Reliability" in calibration.with_suffix(".html").read_text()


def test_a_calibration_of_another_platform_is_refused(tmp_path: Path, calibration: Path) -> None:
    with pytest.raises(BadSettings, match="no ad on 'tiktok'"):
        run_compare(run, **asked(tmp_path, calibration_file=calibration, platforms=["tiktok"]))  # type: ignore[arg-type]


def test_one_ad_on_two_platforms_is_an_experiment(tmp_path: Path) -> None:
    found, _ = run_compare(run, **asked(tmp_path, ads=["Buy now"], platforms=["facebook", "tiktok"]))  # type: ignore[arg-type]
    assert [arm.ad for arm in found.arms] == ["A on facebook", "A on tiktok"]
    assert found.winner is None
