"""Charts as SVG text, to stand inside an HTML page: one look for every workload.

Text and axes take the page's own colour (`currentColor`), the background is transparent: so they are readable on a
light and on a dark page. Narrow and tall on purpose: a phone shows them at their own size.
"""

from __future__ import annotations

import io
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from serve_app import extras

try:
    import matplotlib as mpl
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator
except ModuleNotFoundError as error:
    raise extras.missing(extras.PLOTS) from error

# Okabe & Ito's blue and vermilion: told apart by the colour-blind, and seen on white and on black.
PLAIN, STRONG = "#3d8fc9", "#d9662b"
# For more lines than two.
SERIES = (PLAIN, STRONG, "#1a9e77", "#b07aa1", "#c98b00", "#5aa9c9")
GREY = "#888888"
# Stands for the page's text colour until the SVG is written; no chart uses it otherwise.
INK = "#010203"
WIDTH = 4.3  # inches, so that a phone shows text hardly smaller than it is
LABEL_WIDTH = 20  # characters of a line
STYLE: Any = {  # matplotlib's own type lists every key
    "text.parse_math": False,  # a dollar sign is money
    "svg.fonttype": "none",
    "font.size": 9,
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


def draw(name: str, height: float, paint: Callable[[Axes], None], *, margins: Mapping[str, float] | None = None) -> str:
    """An SVG element of WIDTH × `height` inches. The same data give the same text; `name` keeps the ids of two charts
    of a page apart. `margins` (shares of the figure) in place of those that the labels need line up several charts."""
    with mpl.rc_context(STYLE | {"svg.hashsalt": name}):
        figure = Figure(figsize=(WIDTH, height), layout=None if margins else "constrained")
        if margins:
            figure.subplots_adjust(**margins)
        figure.patch.set_alpha(0)
        axes = figure.add_subplot()
        axes.patch.set_alpha(0)
        paint(axes)
        text = io.StringIO()
        figure.savefig(text, format="svg", metadata={"Date": None, "Creator": None})
    svg = text.getvalue()
    return svg[svg.index("<svg") :].replace(INK, "currentColor")


def limits(dots: Sequence[Dot], reference: float | None = None) -> tuple[float, float]:
    """One axis for several charts: all means, the reference, and the intervals that are not much wider than most (the
    others run off the chart)."""
    known = [(dot.mean, dot.low, dot.high) for dot in dots if dot.mean is not None]
    widths = sorted(high - low for _, low, high in known if low is not None and high is not None)
    most = 3 * widths[len(widths) // 2] if widths else 0.0
    ends = [mean for mean, _, _ in known] + ([] if reference is None else [reference])
    for _, low, high in known:
        ends += [low, high] if low is not None and high is not None and high - low <= most else []
    low, high = min(ends, default=0.0), max(ends, default=1.0)
    room = 0.04 * (high - low) or 0.01
    return low - room, high + room


def dots(
    name: str,
    lines: Sequence[Dot],
    *,
    label: str,
    reference: float | None = None,
    within: tuple[float, float] | None = None,
) -> str:
    """Means with intervals, one under the other, in percent; a dashed line at `reference`. Charts `within` the same
    limits have axes that line up."""
    names = [_wrapped(dot.label) for dot in lines]
    row_height = 0.12 + 0.14 * max((name.count("\n") + 1 for name in names), default=1)
    height = 0.6 + row_height * len(lines)

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
        axes.set_yticks(range(len(lines)), names)
        axes.set_ylim(len(lines) - 0.5, -0.5)
        low, high = within or limits(lines, reference)
        axes.set_xlim(100 * low, 100 * high)
        axes.xaxis.set_major_locator(MaxNLocator(6))
        axes.set_xlabel(label)
        axes.grid(axis="x")
        axes.tick_params(axis="y", length=0)

    # Browsers set the labels in a font of their own: room for wide ones.
    edges = {"left": 0.42, "right": 0.96, "top": 1 - 0.08 / height, "bottom": 0.48 / height}
    return draw(name, height, paint, margins=edges)


def _wrapped(label: str) -> str:
    """In lines of LABEL_WIDTH, up to three for each of the label's own."""
    wrapped = (textwrap.fill(line, LABEL_WIDTH, max_lines=3, placeholder=" …") for line in label.splitlines())
    return "\n".join(wrapped)


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
