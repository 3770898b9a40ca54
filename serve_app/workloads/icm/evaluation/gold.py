"""Gold labels and comparisons with them. No other module of this workload knows them, and the search does not import
this one (a test checks)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
from scipy import stats

from serve_app.errors import BadSettings
from serve_app.workloads.icm.examples.dataset import Dataset
from serve_app.workloads.icm.examples.labels import NONE, Labels
from serve_app.workloads.icm.examples.testbeds import new_id, read_lines
from serve_app.workloads.icm.search.state import Step


@dataclass(frozen=True, slots=True)
class Gold:
    """Gold labels by example id."""

    labels: Mapping[str, int]

    @classmethod
    def read(cls, path: Path) -> Gold:
        """Reads id and label, 0 or 1, from JSONL, a JSON array or a table, ignoring other fields. Raises BadSettings
        with the line number.
        """
        labels: dict[str, int] = {}
        for number, line in read_lines(path):
            try:
                row = msgspec.json.decode(line, type=_GoldRow, strict=False)  # tables have text cells
                if row.label not in (0, 1):
                    raise BadSettings(f"label {row.label} is not 0 or 1")
                labels[new_id(row.id, row.uid, number, labels)] = int(row.label)
            except (msgspec.DecodeError, UnicodeDecodeError) as error:
                problem = f'{error}; a gold row is {{"id": …, "label": 0 or 1}}'
                raise BadSettings(f"{path}, line {number}: {problem}") from None
            except BadSettings as error:
                raise BadSettings(f"{path}, line {number}: {error}") from None
        return cls(labels)

    def of(self, dataset: Dataset) -> Labels:
        """The dataset's gold labels, in order. Raises BadSettings naming an example without one."""
        missing = [example.id for example in dataset.examples if example.id not in self.labels]
        if missing:
            raise BadSettings(f"--gold: {len(missing)} example(s) have no gold label, the first is '{missing[0]}'")
        return bytes(self.labels[example.id] for example in dataset.examples)


class _GoldRow(msgspec.Struct):
    label: int | bool
    id: str | int | None = None
    uid: str | int | None = None


@dataclass(frozen=True, slots=True)
class Accuracy:
    """Share of right labels with a 95 % interval: Wilson's over examples for one labelling, Student's t over seeds for
    several."""

    mean: float
    low: float
    high: float
    examples: int
    seeds: int = 1


def accuracy(labels: Labels, gold: Labels) -> Accuracy:
    """Of one labelling, over labelled examples."""
    judged = [(label, truth) for label, truth in zip(labels, gold, strict=True) if label != NONE]
    if not judged:
        raise BadSettings("no example has a label, so there is nothing to compare with gold labels")
    right = sum(label == truth for label, truth in judged)
    interval = stats.binomtest(right, len(judged)).proportion_ci(0.95, "wilson")
    return Accuracy(right / len(judged), float(interval.low), float(interval.high), len(judged))


def over_seeds(each: Sequence[Accuracy]) -> Accuracy:
    """The seeds' mean; a single one unchanged."""
    if len(each) == 1:
        return each[0]
    means = [one.mean for one in each]
    mean = sum(means) / len(means)
    error = float(stats.sem(means))
    low, high = mean, mean
    if error > 0:
        low, high = (float(bound) for bound in stats.t.interval(0.95, len(means) - 1, loc=mean, scale=error))
    return Accuracy(mean, max(0.0, low), min(1.0, high), each[0].examples, len(each))


def accuracy_by_iteration(start: Mapping[str, int], steps: Iterable[Step], gold: Gold) -> list[tuple[int, float, int]]:
    """(iteration, accuracy of current labels, their number) at the start and each accepted change. `start`: iteration
    0's labels by id.
    """
    labels = dict(start)
    right = sum(gold.labels[name] == label for name, label in labels.items())
    curve = [(0, right / len(labels), len(labels))] if labels else []
    for step in steps:
        if not (step.accepted and step.changes):
            continue
        for name, label in step.changes:
            right -= name in labels and labels[name] == gold.labels[name]
            right += label == gold.labels[name]
            labels[name] = label
        curve.append((step.iteration, right / len(labels), len(labels)))
    return curve
