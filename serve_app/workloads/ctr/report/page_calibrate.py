"""The HTML report of a calibration, and its part in a calibrated run's report."""

from __future__ import annotations

from math import exp

from serve_app.workloads.ctr.report import charts
from serve_app.workloads.ctr.statistics.calibration import Calibration
from serve_app.workloads.report.page import SIMULATED, Chart, Grid, Page, Section, Tile, interval, percent

WORDS = {
    "shift": "all ads are moved by one number of logits",
    "platt": "Platt scaling: a straight line on the logit scale",
    "isotonic": "isotonic regression: steps that never fall",
}


def calibrate_page(calibration: Calibration) -> Page:
    """The page of `serve-app ctr calibrate`."""
    curve, source = calibration.curve, calibration.source
    shown = [ad for ad in calibration.ads if ad.held_out is not None]
    return Page(
        kind=f"Calibration from {len(calibration.ads)} historic ads on {', '.join(calibration.platforms)}",
        title=f"How well does {source.model} foretell clicks?",
        sentence=_sentence(calibration, len(shown)),
        lead="Each historic ad is predicted from the others alone, and compared with the clicks that it got.",
        tiles=[
            Tile("method", curve.method, WORDS[curve.method]),
            Tile("ad error", f"×{exp(curve.ad_error):.2f}", "typical factor of an ad's odds against its score"),
            Tile("covered", f"{_covered(calibration)} of {len(shown)}", "ads inside the interval from the others"),
        ],
        sections=[
            reliability_section(calibration),
            Section(
                "Why this method",
                [
                    "A shift for few ads, a line from five on; steps only where they predict left-out ads better by "
                    "more than a standard error. Mean log predictive density of left-out ads, higher is better:",
                ],
                table=Grid(
                    ("method", "log score"),
                    [(name, f"{score:.3f}") for name, score in calibration.log_scores.items()],
                    (1,),
                ),
            ),
        ],
        provenance=[
            ("model", source.model),
            ("prompts", source.workload),
            ("simulated", "yes" if source.simulated else "no"),
            ("format", calibration.format),
        ],
        warnings=[SIMULATED] if source.simulated else [],
    )


def reliability_section(calibration: Calibration) -> Section:
    """Prediction against truth, ad by ad."""
    shown = [ad for ad in calibration.ads if ad.held_out is not None]
    level = f"{100 * calibration.level:.0f} %"
    words = [
        f"Each dot is a historic ad: across, what the other ads alone predict for it, with the {level} interval of "
        "what its impressions would show; up, what was observed. On the dashed line they agree.",
        f"{_covered(calibration)} of {len(shown)} observed rates lie inside their interval. The calibration takes "
        "a new ad to be like the historic ones.",
    ]
    rows = [
        (
            ad.ad,
            ad.platform,
            f"{ad.impressions:,}",
            f"{ad.clicks:,}",
            percent(ad.clicks / ad.impressions),
            percent(ad.score),
            percent(ad.held_out),
            interval(ad.held_out_low, ad.held_out_high),
        )
        for ad in calibration.ads
    ]
    head = ("ad", "platform", "impressions", "clicks", "observed", "score", "predicted", "interval")
    alt = "; ".join(f"predicted {percent(ad.held_out)}, observed {percent(ad.clicks / ad.impressions)}" for ad in shown)
    chart = [Chart(charts.reliability(calibration), f"Reliability: {alt}")] if shown else []
    return Section("Calibration", words, chart, Grid(head, rows, (2, 3, 4, 5, 6, 7)))


def _sentence(calibration: Calibration, shown: int) -> str:
    if not shown:
        return "Too few historic ads to test a prediction: none could be predicted from the others."
    factor = exp(calibration.curve.ad_error)
    return (
        f"{_covered(calibration)} of {shown} historic ads got clicks within the {100 * calibration.level:.0f} % "
        f"interval that the others foretell; the odds of a click on a new ad are typically off by a factor of "
        f"{factor:.2f}."
    )


def _covered(calibration: Calibration) -> int:
    return sum(
        (ad.held_out_low or 0.0) <= ad.clicks / ad.impressions <= (ad.held_out_high or 0.0)
        for ad in calibration.ads
        if ad.held_out is not None
    )
