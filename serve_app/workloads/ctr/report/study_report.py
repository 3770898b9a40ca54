"""The report of a study: its figures, its page and its files."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow as pa

from serve_app.workloads.ctr.report import figures
from serve_app.workloads.ctr.report.page_run import run_page
from serve_app.workloads.ctr.result import Result
from serve_app.workloads.ctr.statistics.calibration import (
    CalibratedRate,
    Calibration,
    apply_calibration,
    source_of,
)
from serve_app.workloads.ctr.statistics.levels import attributes_of
from serve_app.workloads.ctr.study import Study
from serve_app.workloads.report.page import Page, write_page


@dataclass(frozen=True)
class StudyReport:
    """What is said of a study's result; with a calibration, click-through as the world would have it.

    Its properties raise BadSettings for a calibration of another model, prompt or platform.
    """

    study: Study
    result: Result
    calibration: Calibration | None = None

    @cached_property
    def figures(self) -> dict[str, Any]:
        """Everything that the report says, as JSON has it."""
        people, rate = self._calibrated
        study, result = self.study, self.result
        found = figures.figures(
            result.status,
            result.predictions,
            ad=study.ad,
            platform=study.platform,
            seed=study.seed,
            results=people,
            rate=rate,
        )
        return found | self._asked() | self._bias() | {"calibrated": rate and asdict(rate)}

    def page(self) -> Page:
        """The same for people."""
        people, rate = self._calibrated
        attributes = [name for name in attributes_of(people) if name not in self._sensitive]
        return run_page(self.figures, people, calibration=self.calibration, rate=rate, attributes=attributes)

    def write(self, folder: Path) -> list[Path]:
        """Write results.parquet, results.csv, report.json and report.html; their paths. Raises StoreError."""
        people, _ = self._calibrated
        return [*figures.write(folder, people, self.figures), write_page(self.page(), folder / "report.html")]

    @property
    def _sensitive(self) -> tuple[str, ...]:
        """What is no segment, unless it is a column of the user's own file."""
        return self.study.people_bank.sensitive if self.study.profiles is None else ()

    @cached_property
    def _calibrated(self) -> tuple[pa.Table, CalibratedRate | None]:
        """The click table, and the calibrated rate."""
        people = self.result.table
        if self.calibration is None:
            return people, None
        source = source_of([people], self.study.question.workload)
        return apply_calibration(self.calibration, people, source, self.study.platform)

    def _asked(self) -> dict[str, Any]:
        study, file = self.study, self.study.profiles
        return {
            "workload": study.question.workload,
            "mode": study.mode,
            "swap": study.swap,
            "bank": study.people_bank.identity if file is None else None,
            "profiles": str(file.path) if file is not None else None,
            "people_summary": study.people_summary and study.people_summary.figures,
        }

    def _bias(self) -> dict[str, float]:
        bias = self.result.label_bias
        if bias is None:
            return {}
        found = {"label_swap_bias": bias.position} | ({"label_word_bias": bias.wording} if bias.wording else {})
        return {f"{key}_{name}": value for key, one in found.items() for name, value in asdict(one).items()}
