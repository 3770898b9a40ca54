"""What a run leaves: results.jsonl (a line an example), report.json (all figures) and report.html (table and plots)."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import msgspec

from serve_app.atomic import atomic_write
from serve_app.errors import StoreError
from serve_app.workloads.icm.evaluation.gold import Accuracy
from serve_app.workloads.icm.examples.dataset import Dataset
from serve_app.workloads.icm.search.finding import Finding
from serve_app.workloads.icm.search.state import Step

ICM = "ICM"


@dataclass(frozen=True, slots=True)
class Report:
    """`accuracies` by method, and `curve` of (iteration, accuracy, labels): both empty without gold labels."""

    asked: Mapping[str, Any]
    dataset: Dataset
    finding: Finding
    steps: Sequence[Step]
    accuracies: Mapping[str, Accuracy]
    curve: Sequence[tuple[int, float, int]]
    wall_s: float

    def figures(self) -> dict[str, Any]:
        """Everything but the single labels and steps."""
        scored = [step for step in self.steps if step.calls]
        calls = sum(step.calls for step in scored)
        tokens = sum(step.prompt_tokens for step in scored)
        changing = [step for step in self.steps if step.changes]
        return {
            "asked": dict(self.asked),
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
            "report.html": self.html().encode(),
        }
        try:
            folder.mkdir(parents=True, exist_ok=True)
            for name, content in contents.items():
                with atomic_write(folder / name) as file:
                    file.write(content)
        except OSError as error:
            raise StoreError(f"--out: cannot write {folder}: {error.strerror or error}") from error
        return [folder / name for name in contents]

    def html(self) -> str:
        """One page that needs nothing else: figures, accuracy table, plots as inline SVG, labels."""
        import jinja2

        template = files(__package__).joinpath("report.html.j2").read_text(encoding="utf-8")
        environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
        texts = {example.id: example.text for example in self.dataset.examples}
        return environment.from_string(template).render(
            figures=self.figures(),
            accuracies=self.accuracies,
            plots=[plot for plot in (self._accuracy_plot(), self._utility_plot(), self._cache_plot()) if plot],
            labels=[(label, texts[label.id]) for label in self.finding.labels],
        )

    def _accuracy_plot(self) -> str:
        if not self.curve:
            return ""
        lines = [("ICM, of the examples labelled so far", [(at, share) for at, share, _ in self.curve])]
        levels = {name: found.mean for name, found in self.accuracies.items() if name != ICM}
        return _plot("Accuracy by iteration", "accuracy", lines, levels=levels, bounds=(0, 1.02))

    def _utility_plot(self) -> str:
        if not self.steps:
            return ""
        # A line for each α: lowering it changes U though no label has changed.
        alphas = dict.fromkeys(step.alpha for step in self.steps)
        lines = [
            (f"α = {alpha:g}", [(step.iteration, step.utility) for step in self.steps if step.alpha == alpha])
            for alpha in alphas
        ]
        return _plot("U by iteration", "U(D)", lines)

    def _cache_plot(self) -> str:
        counted = [step for step in self.steps if step.prompt_tokens]
        if not counted:
            return ""
        shares = [(step.iteration, step.cached_tokens / step.prompt_tokens) for step in counted]
        return _plot(
            "Prompt tokens from the prefix cache, by iteration", "share", [("cached", shares)], bounds=(0, 1.02)
        )


def _plot(
    title: str,
    unit: str,
    lines: Sequence[tuple[str, Sequence[tuple[float, float]]]],
    *,
    levels: Mapping[str, float] | None = None,
    bounds: tuple[float, float] | None = None,
) -> str:
    """Lines over iterations, and horizontal ones, as an SVG element."""
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 3.6), layout="constrained")
    FigureCanvasSVG(figure)
    axes = figure.subplots()
    for name, points in lines:
        axes.plot(*zip(*points, strict=True), label=name, drawstyle="steps-post")
    for number, (name, value) in enumerate((levels or {}).items(), 1):
        axes.axhline(value, label=f"{name} {value:.2f}", color=f"C{number}", linestyle="--", linewidth=1)
    axes.set(title=title, xlabel="iteration", ylabel=unit)
    if bounds:
        axes.set_ylim(*bounds)
    axes.legend(fontsize="small", loc="lower right")
    drawn = io.StringIO()
    figure.savefig(drawn, format="svg", metadata={"Date": None})
    return drawn.getvalue()[drawn.getvalue().index("<svg") :]
