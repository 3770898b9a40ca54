"""A study's result."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import pyarrow as pa

from serve_app.spec import JobStatus
from serve_app.workloads.ctr.asking.answers import Answer, table
from serve_app.workloads.ctr.asking.bias import LabelBias, label_bias
from serve_app.workloads.ctr.asking.predict import Prediction, Rates, rates
from serve_app.workloads.ctr.statistics.estimate import Estimate, ctr


@dataclass(frozen=True)
class Result:
    """A study's answers, one per person in population order, and the job's last status."""

    status: JobStatus
    answers: tuple[Answer, ...]

    @property
    def predictions(self) -> list[Prediction]:
        return [answer.prediction for answer in self.answers]

    @cached_property
    def table(self) -> pa.Table:
        return table(self.answers)

    @cached_property
    def rates(self) -> Rates:
        """Click-through over the people asked, unweighted."""
        return rates(self.predictions)

    @cached_property
    def population_ctr(self) -> Estimate:
        """Click-through of the sampled population, by weights."""
        return ctr(self.table)

    @cached_property
    def label_bias(self) -> LabelBias | None:
        """Position and wording bias; None without swapped labels."""
        return label_bias(self.answers)
