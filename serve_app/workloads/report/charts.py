"""Charts as SVG text, to stand inside an HTML page: one look for every workload.

Text and axes take the page's own colour (`currentColor`), the background is transparent: so they are readable on a
light and on a dark page. Narrow and tall on purpose: a phone shows them at their own size.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from serve_app import extras

try:
    import matplotlib as mpl
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
except ModuleNotFoundError as error:
    raise extras.missing(extras.PLOTS) from error

# Okabe & Ito's blue and vermilion: told apart by the colour-blind, and seen on white and on black.
PLAIN, STRONG = "#3d8fc9", "#d9662b"
# For more lines than two.
SERIES = (PLAIN, STRONG, "#1a9e77", "#b07aa1", "#c98b00", "#5aa9c9")
GREY = "#888888"
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
    "grid.color": GREY,
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
            axes.axvline(100 * reference, color=GREY, linestyle="--", linewidth=1)
        axes.set_yticks(range(len(lines)), [_short(dot.label) for dot in lines])
        axes.set_ylim(len(lines) - 0.5, -0.5)
        axes.set_xlabel(label)
        axes.grid(axis="x")
        axes.tick_params(axis="y", length=0)

    return draw(name, 0.9 + 0.27 * len(lines), paint)


def lines(
    name: str,
    series: Mapping[str, Sequence[tuple[float, float]]],
    *,
    label: str,
    across: str,
    levels: Mapping[str, float] | None = None,
    bounds: tuple[float, float] | None = None,
) -> str:
    """Steps over `across`, one line a series, and dashed horizontal lines at `levels`."""

    def paint(axes: Axes) -> None:
        colours = iter(SERIES * (1 + (len(series) + len(levels or {})) // len(SERIES)))
        for title, points in series.items():
            axes.plot(*zip(*points, strict=True), label=title, color=next(colours), drawstyle="steps-post")
        for title, value in (levels or {}).items():
            axes.axhline(value, label=title, color=next(colours), linestyle="--", linewidth=1)
        axes.set_xlabel(across)
        axes.set_ylabel(label)
        if bounds:
            axes.set_ylim(*bounds)
        axes.grid(axis="y")
        axes.figure.legend(fontsize="small", loc="outside lower center", ncols=2)

    return draw(name, 3.2 + 0.12 * (len(series) + len(levels or {})), paint)


def _short(label: str, longest: int = 22) -> str:
    return label if len(label) <= longest else label[: longest - 1] + "…"
