import re

import pytest

from serve_app.workloads.ctr.report.page_compare import short_names
from serve_app.workloads.ctr.report.page_segments import STRONGEST, strongest_section, who_stands_out
from serve_app.workloads.ctr.statistics.estimate import Estimate, column
from serve_app.workloads.ctr.statistics.segments import Segment, segments
from serve_app.workloads.ctr.trial import name_arms
from serve_app.workloads.report.page import about, shortened
from tests.workloads.report.made_up_pages import LONG, SHORT, pages, population


@pytest.fixture(scope="module")
def made() -> dict[str, str]:
    return pages()


@pytest.mark.parametrize(
    ("rate", "said"),
    [
        ((0.00471, 0.0017, 0.0124), "0.5 % would click (0.2 to 1.2 %)"),
        ((0.242, 0.221, 0.263), "24 % would click (22 to 26 %)"),
        ((0.5, 0.5, 0.5), "50 % would click (50 to 50 %)"),
        ((0.00002, 0.00001, 0.00003), "0.002 % would click (0.001 to 0.003 %)"),
    ],
)
def test_a_rate_is_said_as_exactly_as_its_interval_allows(rate: tuple[float, float, float], said: str) -> None:
    assert about(*rate, "would click") == said


def segment(number: int, *, q: float) -> Segment:
    return Segment(
        "city", f"c{number}", 10, Estimate(mean=0.2, se=0.01, low=0.1, high=0.3, df=9, rows=10), 0.01 * number, q, q
    )


def test_groups_that_stand_out_are_named_or_counted() -> None:
    found = [segment(number, q=0.01) for number in range(1, STRONGEST + 4)] + [segment(90, q=0.2)]
    assert who_stands_out(found) == "11 groups stand out, most of all city c11 (20.0 %)"
    words = strongest_section(found, 0.2).paragraphs[0]
    assert re.findall(r"city (c\d+)", words) == [f"c{number}" for number in range(11, 3, -1)]
    assert words.endswith("; and 3 more.")


def test_chance_is_not_sold_as_a_finding() -> None:
    table = population(600, effect=0.0)
    found = segments(table, column(table, "p_click"))
    assert min(s.p_value for s in found if s.p_value is not None) < 0.05  # one test alone would have found something
    assert who_stands_out(found) == "no group stands out"
    assert who_stands_out([]) == ""


def test_a_headline_says_whose_figures_they_are(made: dict[str, str]) -> None:
    sentences = {name: re.findall(r'class="sentence">(.*?)</p>', html)[0] for name, html in made.items()}
    assert sentences["run"].startswith("By the model&#39;s scores, about 23.8 % would click (23.1 to 24.4 %); no group")
    assert re.match(
        r"About [\d.]+ % would click \([\d.]+ to [\d.]+ %\); \d+ groups stand out", sentences["calibrated run"]
    )
    assert sentences["compare"].startswith("Undecided: no ad is clearly the best")
    assert "By the model" in sentences["compare many"]
    assert sentences["icm simulated"].startswith("The labels do not hold together")


def test_time_and_cost_are_under_the_run_alone(made: dict[str, str]) -> None:
    for name in ("run", "icm"):
        before, after = made[name].split("<h2>The run</h2>")
        assert "total time" in after
        assert "total time" not in before


def test_all_segments_of_a_page_share_one_axis(made: dict[str, str]) -> None:
    section = made["run"].split("<h2>By segment</h2>")[1].split("</section>")[0]
    charts = re.findall(r"<svg.*?</svg>", section, re.DOTALL)
    axes = {tuple(re.findall(r">([−\d.]+)</text>", chart.split('id="matplotlib.axis_2"')[0])) for chart in charts}
    assert len(charts) == 7
    assert len(next(iter(axes))) > 2
    assert len(axes) == 1


def test_ads_go_by_their_texts_which_stay_apart() -> None:
    twins = [LONG, f"{LONG[:-1]}!"]
    for ads, platforms in ([SHORT, LONG], ["tiktok"]), (twins, ["tiktok", "amazon"]), ([LONG], ["tiktok", "amazon"]):
        names = short_names(name_arms(ads, platforms))
        assert len(set(names.values())) == len(names)
        assert not set(names.values()) & {"A", "B"}
    assert shortened("New smartphone launch today", 20) == "New smartphone…"
    assert shortened("x" * 30, 10) == "x" * 9 + "…"
