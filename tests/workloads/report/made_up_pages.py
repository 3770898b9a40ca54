"""Every kind of page, from made-up data: with and without findings, short and long texts."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
import pyarrow as pa
from scipy.special import expit

from serve_app.workloads.ctr.people.profiles import generate_profiles
from serve_app.workloads.ctr.report.page_calibrate import calibrate_page
from serve_app.workloads.ctr.report.page_compare import compare_page
from serve_app.workloads.ctr.report.page_run import run_page
from serve_app.workloads.ctr.statistics.calibration import Calibration, apply_calibration, calibrate
from serve_app.workloads.ctr.statistics.experiment import compare
from serve_app.workloads.ctr.statistics.history import HistoricAd
from serve_app.workloads.ctr.trial import name_arms
from serve_app.workloads.icm.evaluation.gold import Accuracy
from serve_app.workloads.icm.examples.testbeds import load
from serve_app.workloads.icm.report import ICM, Report
from serve_app.workloads.icm.search.finding import Finding, Label
from serve_app.workloads.icm.search.state import Step
from serve_app.workloads.report.page import Page, render
from tests.workloads.ctr.made_up import results
from tests.workloads.ctr.report.kit import SOURCE, figures

SHORT, OTHER = "New smartphone launch: 20 % off until Sunday", "Cheap flights to Lisbon"
LONG = (
    "Meet the kettle that remembers how you like your tea, from https://example.com/kettles/the-one-that-remembers?"
    "campaign=spring-sale-with-a-very-long-name, now with free delivery to every address in the country"
)
ATTRIBUTES = ["gender", "age", "region", "occupation", "annual_salary", "liability_status", "is_married"]


def population(rows: int, *, effect: float, appeal: float = -1.2) -> pa.Table:
    """People of the default bank; the young and the women among them like it more, by `effect` logits."""
    people = generate_profiles(rows)
    rng = np.random.default_rng(1)
    liked = [effect * ((p.attributes["age"] < 30) - 0.5 * (p.attributes["gender"] == "Male")) for p in people]  # type: ignore[operator]
    chances = expit(appeal + np.array(liked) + rng.normal(0, 0.5, rows))
    return results(chances, **{name: [p.attributes[name] for p in people] for name in ATTRIBUTES})


def calibration() -> Calibration:
    rng = np.random.default_rng(2)
    scores = np.linspace(0.1, 0.5, 12)
    clicks = rng.binomial(20_000, expit(-6.2 + 3 * scores + rng.normal(0, 0.4, 12)))
    ads = [
        HistoricAd(ad=f"Former ad number {i}: {LONG[: 12 * i]}", platform="tiktok", impressions=20_000, clicks=int(n))
        for i, n in enumerate(clicks)
    ]
    return calibrate(ads, scores, SOURCE)


def icm(*, simulated: bool = False, coherent: bool = True) -> Page:
    data = load("reviews").sample(64, 0)
    rng = np.random.default_rng(3)
    labels = tuple(
        Label(one.id, i % 2, ("negative", "positive")[i % 2], float(rng.uniform(0.6, 1)), i % 5 > 0)
        for i, one in enumerate(data.examples)
    )
    found = Finding(labels, 0.93, 0.9, 0.96, 0.97, 0.55, 0) if coherent else Finding(labels, 0.6, 0.5, 0.7, 0.6, 0.6, 3)
    steps = [
        Step(
            iteration=i, example="x", label=1, changes=(("x", 1),), delta=1.0, temperature=1.0,
            alpha=50.0 if i < 200 else 30.0, accepted=i % 3 > 0, utility=10.0 * np.log(i + 1), predictability=-0.3,
            inconsistent=0, labelled=min(64, i), calls=1, prompts=8, prompt_tokens=1000, cached_tokens=min(950, 3 * i),
        )
        for i in range(1, 300)
    ]  # fmt: skip
    accuracies = {
        name: Accuracy(mean, mean - 0.08, mean + 0.07, 64, seeds)
        for name, mean, seeds in [(ICM, 0.86, 1), ("zero-shot", 0.66, 1), ("chat", 0.71, 1),
                                  ("random-label few-shot", 0.52, 3), ("bootstrapped few-shot", 0.69, 3),
                                  ("gold few-shot", 0.88, 3)]
    }  # fmt: skip
    asked = {"testbed": "reviews", "data": None, "words": "", "variant": "paper", "alpha": None, "fixed_alpha": False,
             "K": 300, "num_seed": 8, "seed": 0, "batch_size": 64, "baselines": True, "shots": 8}  # fmt: skip
    curve = [(i, 0.5 + 0.36 * min(1, i / 200), min(64, i)) for i in range(1, 300)]
    return Report(asked, data, found, steps, accuracies, curve, 61.5, "smollm2-135m-instruct", simulated).page()


def comparison(ads: list[str], platforms: list[str], *, effect: float, simulated: bool, **asked: Any) -> Page:
    arms = name_arms(ads, platforms)
    tables = {name: population(800, effect=effect * i, appeal=-1.2 - 0.15 * i) for i, name in enumerate(arms)}
    return compare_page(
        compare(tables, **asked), arms, provenance=[("model", "m"), ("comparison", "compare-20260101-120000-1a2b")],
        simulated=simulated, **asked,
    )  # fmt: skip


@lru_cache
def pages() -> dict[str, str]:
    """All of them as HTML, by name."""
    plain, findings, few = population(600, effect=0.0), population(3000, effect=1.5), population(40, effect=0.0)
    known = calibration()
    moved, rate = apply_calibration(known, findings, SOURCE, "tiktok")
    made = {
        "run": run_page(figures(plain) | {"ad": SHORT}, plain),
        "run with findings": run_page(figures(findings, simulated=True) | {"ad": LONG}, findings),
        "run of few": run_page(figures(few) | {"ad": SHORT}, few),
        "calibrated run": run_page(figures(moved, rate=rate) | {"ad": SHORT}, moved, calibration=known, rate=rate),
        "calibrate": calibrate_page(known),
        "compare": comparison([SHORT, OTHER], ["tiktok"], effect=1.5, simulated=False, calibration=known),
        "compare many": comparison([SHORT, LONG], ["tiktok", "amazon"], effect=0.4, simulated=True),
        "icm": icm(),
        "icm simulated": icm(simulated=True, coherent=False),
    }
    return {name: render(page) for name, page in made.items()}
