"""The report's charts as SVG text, to stand inside an HTML page.

Text and axes take the page's own colour (`currentColor`), the background is transparent: so they are readable on a
light and on a dark page. Narrow and tall on purpose: a phone shows them at their own size.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from serve_app import extras
from serve_app.workloads.ctr.statistics.calibration import Calibration
from serve_app.workloads.ctr.statistics.estimate import Floats
from serve_app.workloads.ctr.statistics.experiment import Comparison
from serve_app.workloads.ctr.statistics.history import observed_interval
from serve_app.workloads.ctr.statistics.segments import Segment

try:
    import matplotlib as mpl
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator
except ModuleNotFoundError as error:
    raise extras.missing(extras.PLOTS) from error

# Okabe & Ito's blue and vermilion: told apart by the colour-blind, and seen on white and on black.
PLAIN, STRONG = "#3d8fc9", "#d9662b"
# Stands for the page's text colour until the SVG is written; no chart uses it otherwise.
INK = "#010203"
WIDTH = 5.2  # inches
STYLE: Any = {  # matplotlib's own type lists every key
    "text.parse_math": False,  # a dollar sign is money
    "svg.fonttype": "none",
    "font.size": 10,
    "text.color": INK,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "grid.color": "#888888",
    "grid.alpha": 0.3,
    "legend.frameon": False,
}


@dataclass(frozen=True, slots=True)
class Dot:
    """A line of a dot plot. `mean` is None for a group without answers."""

    label: str
    mean: float | None
    low: float | None
    high: float | None
    strong: bool = False


def draw(name: str, height: float, paint: Callable[[Axes], None]) -> str:
    """An SVG element of WIDTH × `height` inches. The same data give the same text; `name` keeps the ids of two charts
    of a page apart."""
    with mpl.rc_context(STYLE | {"svg.hashsalt": name}):
        figure = Figure(figsize=(WIDTH, height), layout="constrained")
        figure.patch.set_alpha(0)
        axes = figure.add_subplot()
        axes.patch.set_alpha(0)
        paint(axes)
        text = io.StringIO()
        figure.savefig(text, format="svg", metadata={"Date": None, "Creator": None})
    svg = text.getvalue()
    return svg[svg.index("<svg") :].replace(INK, "currentColor")


def dots(name: str, lines: Sequence[Dot], *, label: str, reference: float | None = None) -> str:
    """Means with intervals, one under the other, in percent; a dashed line at `reference`."""

    def paint(axes: Axes) -> None:
        for row, dot in enumerate(lines):
            if dot.mean is None:
                axes.text(0.02, row, "no answers", va="center", style="italic", transform=axes.get_yaxis_transform())
                continue
            colour = STRONG if dot.strong else PLAIN
            if dot.low is not None and dot.high is not None:
                axes.plot([100 * dot.low, 100 * dot.high], [row, row], color=colour, linewidth=2.5)
            # Shape says the same as colour.
            axes.plot(100 * dot.mean, row, "D" if dot.strong else "o", color=colour, markersize=6)
        if reference is not None:
            axes.axvline(100 * reference, color="#888888", linestyle="--", linewidth=1)
        axes.set_yticks(range(len(lines)), [_short(dot.label) for dot in lines])
        axes.set_ylim(len(lines) - 0.5, -0.5)
        axes.set_xlabel(label)
        axes.grid(axis="x")
        axes.tick_params(axis="y", length=0)

    return draw(name, 0.9 + 0.27 * len(lines), paint)


def segment_chart(attribute: str, found: Sequence[Segment], *, label: str, reference: float | None) -> str:
    """An attribute's segments; those that differ from the rest are marked."""
    lines = [Dot(s.level, s.estimate.mean, s.estimate.low, s.estimate.high, s.differs) for s in found]
    return dots(f"segments-{attribute}", lines, label=label, reference=reference)


def distribution(chances: Floats, weights: Floats | None = None) -> str:
    """Histogram of the people's probabilities of a click, in percent of people."""

    def paint(axes: Axes) -> None:
        known = ~np.isnan(chances)
        share = np.ones(len(chances)) if weights is None else weights
        # The whole range only where it is used: real click-through lies within the first per cents.
        top = min(1.0, float(chances[known].max(initial=0.0)) * 1.05 + 1e-6)
        axes.hist(
            100 * chances[known],
            bins=np.linspace(0, 100 * top, 31).tolist(),
            weights=100 * share[known] / max(share[known].sum(), 1e-300),
            color=PLAIN,
        )
        axes.set_xlabel("probability of a click, %")
        axes.set_ylabel("people, %")
        axes.grid(axis="y")

    return draw("distribution", 2.8, paint)


def reliability(calibration: Calibration) -> str:
    """Observed CTR of each historic ad over what the other ads predict for it, both with intervals, both axes
    logarithmic; on the diagonal prediction and truth agree."""

    def paint(axes: Axes) -> None:
        shown = [ad for ad in calibration.ads if ad.held_out is not None]
        seen = [observed_interval(ad.clicks, ad.impressions, level=calibration.level) for ad in shown]
        ends: list[float] = []
        for ad, (low, high) in zip(shown, seen, strict=True):
            x, left, right = (100 * (value or 0.0) for value in (ad.held_out, ad.held_out_low, ad.held_out_high))
            y = 100 * ad.clicks / ad.impressions
            axes.plot([left, right], [y, y], color=PLAIN, linewidth=1, alpha=0.6)
            axes.plot([x, x], [100 * low, 100 * high], color=PLAIN, linewidth=1.5)
            axes.plot(x, y, "o", color=PLAIN, markersize=5)
            ends += [x, y] if y > 0 else [x]
        if ends:
            span = [min(ends) / 2, min(100.0, max(ends) * 2)]
            axes.plot(span, span, color="#888888", linestyle="--", linewidth=1)
            axes.set(xscale="log", yscale="log", xlim=span, ylim=span)
            for axis in (axes.xaxis, axes.yaxis):
                axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
                axis.set_major_formatter(lambda value, _: f"{value:g}")
                axis.set_minor_formatter(lambda value, _: "")
        axes.set_xlabel("predicted from the other ads, % (with its interval)")
        axes.set_ylabel("observed CTR, %")
        axes.grid()

    return draw("reliability", 4.4, paint)


def forest(comparison: Comparison, names: Mapping[str, str]) -> str:
    """Every pair's difference with its interval; decided ones are marked. `names` are short names of the ads."""
    lines = []
    for c in comparison.contrasts:
        middle, low, high = c.calibrated or (c.difference.mean, c.difference.low, c.difference.high)
        lines.append(Dot(f"{names[c.second]} − {names[c.first]}", middle, low, high, c.decided))
    return dots("forest", lines, label="difference of CTR, percentage points", reference=0.0)


def _short(label: str, longest: int = 22) -> str:
    return label if len(label) <= longest else label[: longest - 1] + "…"
