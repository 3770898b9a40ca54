"""Compare ads by clicks on the same people. The Python API of `serve-app ctr compare`:

    study = CompareStudy(ads=("New phone", "Cheap flights"), size=1000)
    found = study.run(PopulationClient("http://127.0.0.1:8000"))
    print(found.comparison.winner, found.write(Path("runs") / found.id))

`statistics/experiment.py` has the statistics.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow as pa

from serve_app.errors import BadSettings
from serve_app.spec import JobStatus
from serve_app.workloads.ctr.asking.prompts import WORKLOAD
from serve_app.workloads.ctr.people.bank import load_bank
from serve_app.workloads.ctr.report.figures import write_files
from serve_app.workloads.ctr.report.page_compare import compare_page
from serve_app.workloads.ctr.statistics.calibration import Calibration, Source, source_of
from serve_app.workloads.ctr.statistics.experiment import Comparison, compare
from serve_app.workloads.ctr.statistics.levels import attributes_of
from serve_app.workloads.ctr.study import SIZE, Client
from serve_app.workloads.ctr.trial import (
    RunPopulation,
    Shown,
    Trial,
    name_arms,
    new_group,
    population_run,
    run_sequential,
    run_trial,
)
from serve_app.workloads.report.page import write_page


@dataclass(frozen=True, kw_only=True)
class CompareStudy:
    """The comparison's settings: every ad on every platform.

    `batch` is people between looks of a sequential test; None asks all `size`. `indifference` is the difference of CTR,
    as a share, that does not matter to it. The sample size is reported for the difference `smallest`, else the observed
    one.

    Raises BadSettings for fewer than two arms, and a calibration without ads on the platforms.
    """

    ads: tuple[str, ...]
    platforms: tuple[str, ...] = ("facebook",)
    size: int = SIZE
    seed: int = 42
    calibration: Calibration | None = None
    batch: int | None = None
    indifference: float = 0.0
    smallest: float | None = None
    level: float = 0.95
    power: float = 0.8

    def __post_init__(self) -> None:
        if self.indifference and self.batch is None:
            raise BadSettings("--indifference: only with --sequential")
        for arm in self.arms.values():
            if self.calibration is not None:
                self.calibration.check_question(WORKLOAD, arm.platform)

    @cached_property
    def arms(self) -> Mapping[str, Shown]:
        """What is shown, by report names: A, B, …"""
        return name_arms(self.ads, self.platforms)

    def run(
        self, client: Client, on_status: Callable[[JobStatus], None] = lambda status: None, **job: Any
    ) -> CompareResult:
        """Show the ads, one job each (or per look), and compare. `job`: further fields of `spec.JobSpec`."""
        group = new_group("compare")
        return self.run_with(
            population_run(client, seed=self.seed, group=group, on_status=on_status, **job), name=group
        )

    def run_with(self, run: RunPopulation, *, name: str = "compare") -> CompareResult:
        """Like `run`, by any `RunPopulation`. Raises BadSettings for several models, or an uncalibrated one."""
        if self.batch is None:
            trial = run_trial(self.arms, run, self.size)
        else:
            trial = run_sequential(
                self.arms, run, self.size, batch=self.batch, alpha=1 - self.level, indifference=self.indifference
            )
        source = source_of(trial.results.values(), WORKLOAD)
        if self.calibration is not None:
            for arm in self.arms.values():
                self.calibration.check(source, arm.platform)
        found = compare(
            trial.results,
            calibration=self.calibration,
            level=self.level,
            power=self.power,
            smallest=self.smallest,
            look=trial.looks[-1] if trial.looks else None,
            attributes=_segmented(next(iter(trial.results.values()))),
        )
        return CompareResult(name, self, trial, found, source)


def _segmented(people: pa.Table) -> list[str]:
    """All that is known of the people but what the default bank keeps from the model."""
    sensitive = load_bank("default").sensitive
    return [name for name in attributes_of(people) if name not in sensitive]


@dataclass(frozen=True)
class CompareResult:
    """A comparison's result. `id` is its jobs' metadata `group`."""

    id: str
    study: CompareStudy
    trial: Trial
    comparison: Comparison
    source: Source

    def summary(self) -> dict[str, Any]:
        found = self.comparison
        return {
            "id": self.id,
            "winner": found.winner,
            "rows": found.rows,
            "dropped": found.dropped,
            "calibrated": found.calibrated,
            "ctr": {arm.ad: arm.rate[0] for arm in found.arms},
            "best_probability": {arm.ad: arm.best_probability for arm in found.arms},
            "rows_saved": self.trial.rows_saved,
            "simulated": self.source.simulated,
        }

    def write(self, folder: Path) -> list[Path]:
        """Write comparison.json, report.html and each arm's results (Parquet, CSV).

        Returns paths. Raises StoreError.
        """
        arms, found, source = self.study.arms, self.comparison, self.source
        provenance = [
            ("model", source.model),
            ("prompts", source.workload),
            ("seed of the population", str(self.study.seed)),
            ("comparison", self.id),
        ]
        page = compare_page(
            found,
            arms,
            provenance=provenance,
            simulated=source.simulated,
            calibration=self.study.calibration,
            looks=self.trial.looks,
        )
        report = {
            "id": self.id,
            "arms": {name: asdict(arm) for name, arm in arms.items()},
            "seed": self.study.seed,
            "source": source.model_dump(),
        }
        paths = write_files(folder, dict(self.trial.results), "comparison.json", report | asdict(found))
        return [*paths, write_page(page, folder / "report.html")]
