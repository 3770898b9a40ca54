"""The charts of a click-through report, made from the kit of `workloads/report/charts.py`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from serve_app.workloads.ctr.statistics.calibration import Calibration
from serve_app.workloads.ctr.statistics.estimate import Floats
from serve_app.workloads.ctr.statistics.experiment import Comparison
from serve_app.workloads.ctr.statistics.history import observed_interval
from serve_app.workloads.ctr.statistics.segments import Segment
from serve_app.workloads.report.charts import GREY, PLAIN, Dot, dots, draw

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def segment_dot(segment: Segment, name: str = "") -> Dot:
    """A segment as a line of a dot plot, by its level unless it has a `name`; marked if it differs from the rest."""
    rate = segment.estimate
    return Dot(name or segment.level, rate.mean, rate.low, rate.high, segment.differs)


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
    from matplotlib.ticker import LogLocator

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
            axes.plot(span, span, color=GREY, linestyle="--", linewidth=1)
            axes.set(xscale="log", yscale="log", xlim=span, ylim=span)
            for axis in (axes.xaxis, axes.yaxis):
                axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
                axis.set_major_formatter(lambda value, _: f"{value:g}")
                axis.set_minor_formatter(lambda value, _: "")
        axes.set_xlabel("predicted from the other ads, % (with its interval)")
        axes.set_ylabel("observed CTR, %")
        axes.grid()

    return draw("reliability", 4.4, paint)


def forest(comparison: Comparison, pairs: Sequence[str]) -> str:
    """Every pair's difference with its interval; decided ones are marked. `pairs` are their names."""
    lines = [Dot(pair, *c.gap, c.decided) for c, pair in zip(comparison.contrasts, pairs, strict=True)]
    return dots("forest", lines, label="difference of CTR, percentage points", reference=0.0)
