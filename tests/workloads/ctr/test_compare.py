import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from scipy.special import expit, logit

from serve_app.cli.ctr_compare import as_table
from serve_app.errors import BadSettings
from serve_app.workloads.ctr.calibrate import CalibrationStudy, write_calibration
from serve_app.workloads.ctr.compare import CompareResult, CompareStudy
from serve_app.workloads.ctr.statistics.calibration import load_calibration
from serve_app.workloads.ctr.statistics.history import read_history
from serve_app.workloads.report.page import SIMULATED
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
    found = CalibrationStudy(history=read_history(tmp_path / "ads.csv"), size=200).run_with(run)
    write_calibration(found, tmp_path / "calibration.json")
    return tmp_path / "calibration.json"


def compared(**changes: Any) -> CompareResult:
    fields: dict[str, Any] = {"ads": ("Buy later", "Buy now"), "size": 400}
    return CompareStudy(**(fields | changes)).run_with(run)


def test_the_better_ad_wins_and_files_say_so(tmp_path: Path) -> None:
    found = compared()
    assert found.summary()["winner"] == "B"
    assert {path.name for path in found.write(tmp_path / "out")} == {
        "A.parquet", "A.csv", "B.parquet", "B.csv", "comparison.json", "report.html",
    }  # fmt: skip
    written = json.loads((tmp_path / "out" / "comparison.json").read_text())
    assert written["arms"][1]["ad"] == "B"
    page = (tmp_path / "out" / "report.html").read_text()
    assert "By the model&#39;s scores, “Buy now” wins: it gets more clicks than the other" in page
    assert "B wins" not in page
    assert as_table(found).row_count == 1


def test_what_the_default_bank_keeps_from_the_model_is_no_segment_of_a_comparison() -> None:
    def with_health(ad: str, platform: str, *, start: int, size: int) -> pa.Table:
        table = run(ad, platform, start=start, size=size)
        return table.append_column("illness", pa.array(["Asthma", None] * (size // 2)))

    found = CompareStudy(ads=("Buy later", "Buy now"), size=400).run_with(with_health).comparison
    assert {segment.attribute for segment in found.contrasts[0].segments} == {"city"}


def test_a_sequential_comparison_saves_rows() -> None:
    found = compared(size=4000, batch=100)
    assert found.comparison.winner == "B"
    assert found.summary()["rows_saved"] == 4000 - found.comparison.rows > 3000


def test_a_calibration_is_made_and_applied(calibration: Path) -> None:
    found = compared(calibration=load_calibration(calibration))
    assert found.comparison.calibrated
    truth = {"A": expit(-3 + 0.8 * -1.4), "B": expit(-3 + 0.8 * -1.0)}
    assert found.summary()["ctr"] == pytest.approx(truth, rel=0.1)
    assert "Reliability" in calibration.with_suffix(".html").read_text()


def test_a_calibration_of_another_platform_is_refused_before_anybody_is_asked(calibration: Path) -> None:
    with pytest.raises(BadSettings, match="no ad on 'tiktok'"):
        CompareStudy(ads=("a", "b"), platforms=("tiktok",), calibration=load_calibration(calibration))


def test_one_ad_on_two_platforms_is_an_experiment() -> None:
    found = compared(ads=("Buy now",), platforms=("facebook", "tiktok")).comparison
    assert [arm.ad for arm in found.arms] == ["A on facebook", "A on tiktok"]
    assert found.winner is None


def test_a_difference_that_does_not_matter_is_of_a_sequential_test() -> None:
    with pytest.raises(BadSettings, match="--indifference: only with --sequential"):
        CompareStudy(ads=("a", "b"), indifference=0.1)


def test_a_simulated_comparison_says_so_in_terminal_json_and_page(tmp_path: Path) -> None:
    def simulated(ad: str, platform: str, *, start: int, size: int) -> pa.Table:
        table = run(ad, platform, start=start, size=size)
        index = table.column_names.index("simulated")
        return table.set_column(index, "simulated", pa.array([True] * size))

    found = CompareStudy(ads=("Buy later", "Buy now"), size=50).run_with(simulated)
    assert found.summary()["simulated"] is True
    assert "SIMULATED ENGINE" in str(as_table(found).title)
    found.write(tmp_path)
    assert SIMULATED in (tmp_path / "report.html").read_text()
    real = compared()
    assert real.summary()["simulated"] is False
    assert "SIMULATED" not in str(as_table(real).title)
