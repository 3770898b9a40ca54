"""From historic ads and their observed click-through to a calibration. The Python API of `serve-app ctr calibrate`:

study = CalibrationStudy(history=read_history(Path("history.csv")))
calibration = study.run(PopulationClient("http://127.0.0.1:8000"))
write_calibration(calibration, Path("calibration.json"))
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from serve_app.errors import ServerUnavailable
from serve_app.spec import JobStatus
from serve_app.workloads.ctr.asking.prompts import WORKLOAD
from serve_app.workloads.ctr.report.page_calibrate import calibrate_page
from serve_app.workloads.ctr.statistics.calibration import Calibration, calibrate, save_calibration, source_of
from serve_app.workloads.ctr.statistics.estimate import ctr
from serve_app.workloads.ctr.statistics.history import HistoricAd
from serve_app.workloads.ctr.study import SIZE, Client
from serve_app.workloads.ctr.trial import RunPopulation, new_group, population_run
from serve_app.workloads.report.page import write_page


@dataclass(frozen=True, kw_only=True)
class CalibrationStudy:
    """Shows each historic ad to the same people."""

    history: Sequence[HistoricAd]
    size: int = SIZE
    seed: int = 42

    def run(
        self, client: Client, on_status: Callable[[JobStatus], None] = lambda status: None, **job: Any
    ) -> Calibration:
        """Score each ad in its own job, and fit. `job`: further fields of `spec.JobSpec`. Raises as `run_with`."""
        group = new_group("calibrate")
        return self.run_with(population_run(client, seed=self.seed, group=group, on_status=on_status, **job))

    def run_with(self, run: RunPopulation) -> Calibration:
        """Like `run`, by any `RunPopulation`. Raises BadSettings for ads that determine no calibration,
        ServerUnavailable for an ad without answers.
        """
        results = [run(ad.ad, ad.platform, start=0, size=self.size) for ad in self.history]
        scores = [ctr(table).mean for table in results]
        for ad, score in zip(self.history, scores, strict=True):
            if score is None:
                raise ServerUnavailable(f"no person has an answer for the ad '{ad.ad}': run it again")
        return calibrate(list(self.history), np.array(scores, dtype=float), source_of(results, WORKLOAD))


def write_calibration(calibration: Calibration, path: Path) -> list[Path]:
    """Write the calibration and its page; returns both paths. Raises StoreError."""
    save_calibration(calibration, path)
    return [path, write_page(calibrate_page(calibration), path.with_suffix(".html"))]
