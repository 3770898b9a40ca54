"""What a run leaves: results.jsonl (a line an example), report.json (all figures) and report.html."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from serve_app.atomic import atomic_write
from serve_app.errors import StoreError
from serve_app.workloads.icm.evaluation.gold import Accuracy
from serve_app.workloads.icm.examples.dataset import Dataset
from serve_app.workloads.icm.search.finding import Finding
from serve_app.workloads.icm.search.state import Step
from serve_app.workloads.report.page import SIMULATED, Chart, Grid, Page, Section, Tile, percent, render

ICM = "ICM"
# What was asked, in words; what is not among these goes by its own name.
ASKED = {
    "testbed": "examples",
    "data": "file of examples",
    "gold": "file of gold labels",
    "words": "label words",
    "K": "iterations asked for",
    "alpha": "first α",
    "num_seed": "examples with a random label at first",
    "seed": "seed of the search",
    "batch_size": "examples at most",
    "baselines": "baselines",
    "shots": "demonstrations of a baseline",
    "baseline_seeds": "seeds of a baseline",
    "variant": "variant of the algorithm",
    "provider_url": "provider",
}
FIGURES = {
    "iterations": "iterations",
    "proposals": "proposed changes of labels",
    "accepted": "accepted changes",
    "labelled_by_search": "examples labelled by the search",
    "inconsistent": "inconsistent pairs",
    "relations": "pairs that must be consistent",
    "utility": "U, what the search maximises, at the end",
    "alpha": "α, the weight of predictability in U, at the end",
    "calls": "requests to the model",
    "calls_per_iteration": "requests per iteration",
    "prompts": "prompts",
    "prompt_tokens": "prompt tokens",
}


@dataclass(frozen=True, slots=True)
class Report:
    """`accuracies` by method, and `curve` of (iteration, accuracy, labels): both empty without gold labels. `model` is
    the name of what answered."""

    asked: Mapping[str, Any]
    dataset: Dataset
    finding: Finding
    steps: Sequence[Step]
    accuracies: Mapping[str, Accuracy]
    curve: Sequence[tuple[int, float, int]]
    wall_s: float
    model: str = ""
    simulated: bool = False

    def figures(self) -> dict[str, Any]:
        """Everything but the single labels and steps."""
        scored = [step for step in self.steps if step.calls]
        calls = sum(step.calls for step in scored)
        tokens = sum(step.prompt_tokens for step in scored)
        changing = [step for step in self.steps if step.changes]
        return {
            "asked": dict(self.asked),
            "model": self.model,
            "simulated": self.simulated,
            "examples": len(self.dataset),
            "relations": len(self.dataset.relations),
            "label_words": [word.strip() for word in self.dataset.words.in_text],
            "labelled_by_search": sum(label.searched for label in self.finding.labels),
            "confidence": self.finding.confidence,
            "confidence_low": self.finding.low,
            "confidence_high": self.finding.high,
            "shuffled_confidence": self.finding.shuffled_confidence,
            "agreement": self.finding.agreement,
            "coherent": self.finding.coherent,
            "inconsistent": self.finding.inconsistent,
            "utility": self.steps[-1].utility if self.steps else None,
            "iterations": self.steps[-1].iteration if self.steps else 0,
            "proposals": len(changing),
            "accepted": sum(step.accepted for step in changing),
            "alpha": self.steps[-1].alpha if self.steps else None,
            "calls": calls,
            "calls_per_iteration": calls / len(scored) if scored else None,
            "prompts": sum(step.prompts for step in scored),
            "prompt_tokens": tokens,
            "cached_share": sum(step.cached_tokens for step in scored) / tokens if tokens else None,
            "accuracy": {name: msgspec.to_builtins(found) for name, found in self.accuracies.items()},
            "wall_s": self.wall_s,
        }

    def write(self, folder: Path) -> list[Path]:
        """Write the three files; their paths. Raises StoreError."""
        contents = {
            "results.jsonl": b"".join(msgspec.json.encode(label) + b"\n" for label in self.finding.labels),
            "report.json": msgspec.json.format(msgspec.json.encode(self.figures()), indent=1) + b"\n",
            "report.html": render(self.page()).encode(),
        }
        try:
            folder.mkdir(parents=True, exist_ok=True)
            for name, content in contents.items():
                with atomic_write(folder / name) as file:
                    file.write(content)
        except OSError as error:
            raise StoreError(f"--out: cannot write {folder}: {error.strerror or error}") from error
        return [folder / name for name in contents]

    def page(self) -> Page:
        """The same for people."""
        return _page(self)


def _page(report: Report) -> Page:
    found = report.figures()
    return Page(
        kind=f"Labels by internal coherence maximisation, for {found['examples']:,} examples",
        title=report.dataset.name,
        sentence=_sentence(report),
        lead="The labels are those that the model finds most coherent with each other: it was given none.",
        tiles=_tiles(report, found),
        sections=[
            section for section in (_accuracy(report), _search(report), _labels(report), _run(report, found)) if section
        ],
        provenance=[
            ("model", report.model or "–"),
            ("simulated", "yes" if report.simulated else "no"),
            *(
                (ASKED.get(name, name.replace("_", " ")), _said(value))
                for name, value in report.asked.items()
                if value not in (None, "") and name != "model"
            ),
        ],
        warnings=_warnings(report),
    )


def _sentence(report: Report) -> str:
    """Whether the labels hold together, and where it is known, how many are right."""
    finding, icm = report.finding, report.accuracies.get(ICM)
    held = "The labels hold together" if finding.coherent else "The labels do not hold together"
    said = f"{held} (confidence {finding.confidence:.2f}, where 0.50 is chance)"
    if icm is None:
        return f"{said}; how many are right is not known without gold labels."
    return f"{said}; {percent(icm.mean, 0)} agree with the gold labels ({_interval(icm)})."


def _warnings(report: Report) -> list[str]:
    found, finding = [SIMULATED] if report.simulated else [], report.finding
    if not finding.coherent:
        found.append(
            f"The labels do not hold together: confidence {finding.confidence:.2f} ({finding.low:.2f} to "
            f"{finding.high:.2f}), and {finding.shuffled_confidence:.2f} for the same labels shuffled, where 0.5 "
            "is chance. Do not take them for what the model knows."
        )
    return found


def _tiles(report: Report, found: Mapping[str, Any]) -> list[Tile]:
    finding, icm = report.finding, report.accuracies.get(ICM)
    return [
        *([Tile("accuracy of ICM", percent(icm.mean, 1), _interval(icm))] if icm else []),
        Tile("confidence", f"{finding.confidence:.2f}", f"shuffled {finding.shuffled_confidence:.2f}, chance 0.50"),
        Tile("labelled by the search", f"{found['labelled_by_search']:,}", f"of {found['examples']:,} examples"),
        Tile("inconsistent pairs", f"{found['inconsistent']:,}", f"of {found['relations']:,}"),
    ]


def _accuracy(report: Report) -> Section | None:
    if not report.accuracies:
        return None
    rows = [
        (name, percent(found.mean, 1), _interval(found), str(found.examples), str(found.seeds))
        for name, found in report.accuracies.items()
    ]
    return Section(
        "Accuracy",
        [
            "Intervals are Wilson's over examples for one seed, Student's t over seeds for several. The search was "
            "not given gold labels: they are the evaluation's alone.",
        ],
        _accuracy_plot(report),
        Grid(("method", "accuracy", "95 % interval", "examples", "seeds"), rows, (1, 2, 3, 4)),
    )


def _search(report: Report) -> Section | None:
    charts = [*_utility_plot(report), *_cache_plot(report)]
    words = [
        "The search proposes a label for one example at a time and keeps it by simulated annealing on U: how well each "
        "label is predicted from all others, less the inconsistent pairs."
    ]
    return Section("The search", words, charts) if charts else None


def _labels(report: Report) -> Section:
    texts = {example.id: example.text for example in report.dataset.examples}
    rows = [
        (one.id, texts[one.id], one.word, f"{one.probability:.3f}", "search" if one.searched else "prediction")
        for one in report.finding.labels
    ]
    return Section(
        "Labels",
        ["Each with its probability, given all others."],
        table=Grid(("id", "example", "label", "probability", "by"), rows, (3,)),
        folded=True,
    )


def _run(report: Report, found: Mapping[str, Any]) -> Section:
    rows = [
        ("total time", f"{report.wall_s:,.1f} s"),
        *((name, _number(found[key])) for key, name in FIGURES.items()),
        ("prompt tokens from the prefix cache", percent(found["cached_share"], 1)),
    ]
    return Section("The run", table=Grid(("", ""), rows, (1,)))


def _accuracy_plot(report: Report) -> list[Chart]:
    curve = report.curve
    if not curve:
        return []
    series = {"ICM, of the examples labelled so far": [(at, share) for at, share, _ in curve]}
    levels = {f"{name} {found.mean:.2f}": found.mean for name, found in report.accuracies.items() if name != ICM}
    alt = f"Accuracy of ICM's labels, {percent(curve[0][1], 1)} at first, {percent(curve[-1][1], 1)} last"
    return [_plot("accuracy", "Accuracy by iteration", series, alt, label="accuracy", levels=levels, share=True)]


def _utility_plot(report: Report) -> list[Chart]:
    steps = report.steps
    if not steps:
        return []
    # A line for each α: lowering it changes U though no label has changed.
    alphas = dict.fromkeys(step.alpha for step in steps)
    series = {
        f"α = {alpha:g}": [(step.iteration, step.utility) for step in steps if step.alpha == alpha] for alpha in alphas
    }
    alt = f"U(D) from {steps[0].utility:.4g} to {steps[-1].utility:.4g}"
    return [_plot("utility", "U by iteration", series, alt, label="U(D)")]


def _cache_plot(report: Report) -> list[Chart]:
    shares = [(step.iteration, step.cached_tokens / step.prompt_tokens) for step in report.steps if step.prompt_tokens]
    if not shares:
        return []
    title = "Prompt tokens from the prefix cache, by iteration"
    return [_plot("cache", title, {"cached": shares}, f"{title}: last {shares[-1][1]:.0%}", label="share", share=True)]


def _plot(
    name: str,
    title: str,
    series: Mapping[str, Sequence[tuple[float, float]]],
    alt: str,
    *,
    label: str,
    levels: Mapping[str, float] | None = None,
    share: bool = False,
) -> Chart:
    from serve_app.workloads.report import charts  # imports matplotlib

    bounds = (0.0, 1.02) if share else None
    return Chart(charts.lines(name, series, label=label, across="iteration", levels=levels, bounds=bounds), alt, title)


def _interval(found: Accuracy) -> str:
    return f"{100 * found.low:.1f} to {100 * found.high:.1f} %"


def _said(value: Any) -> str:
    return {True: "yes", False: "no"}[value] if isinstance(value, bool) else str(value)


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:,}" if isinstance(value, int) else f"{value:,.4g}"
