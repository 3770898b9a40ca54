import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pyarrow.csv as pa_csv
import pytest

from serve_app.workloads.ctr.report import figures as report
from serve_app.workloads.ctr.report.page_calibrate import calibrate_page
from serve_app.workloads.ctr.report.page_compare import compare_page
from serve_app.workloads.ctr.report.page_run import run_page
from serve_app.workloads.ctr.statistics.calibration import (
    Calibration,
    apply_calibration,
    calibrate,
)
from serve_app.workloads.ctr.statistics.experiment import compare
from serve_app.workloads.ctr.statistics.history import HistoricAd
from serve_app.workloads.ctr.trial import name_arms
from serve_app.workloads.report.page import SIMULATED, render, write_page
from tests.workloads.ctr.made_up import results
from tests.workloads.ctr.report.kit import AD, SOURCE, figures, people


@pytest.fixture(scope="module")
def calibration() -> Calibration:
    ads = [HistoricAd(ad=f"ad {i} <b>", platform="tiktok", impressions=5000, clicks=20 + 9 * i) for i in range(6)]
    return calibrate(ads, np.linspace(0.1, 0.5, 6), SOURCE)


@pytest.fixture(scope="module")
def pages(calibration: Calibration) -> dict[str, str]:
    table, rate = apply_calibration(calibration, people(), SOURCE, "tiktok")
    arms = name_arms([AD, "B"], ["tiktok"])
    comparison = compare({"A": people(), "B": people(gap=0.1)}, calibration=calibration)
    return {
        "run": render(run_page(figures(people()), people())),
        "calibrated run": render(run_page(figures(table, rate=rate), table, calibration=calibration, rate=rate)),
        "calibrate": render(calibrate_page(calibration)),
        "compare": render(
            compare_page(comparison, arms, provenance=[("model", "m")], simulated=False, calibration=calibration)
        ),
    }


def test_pages_load_nothing_from_anywhere(pages: dict[str, str]) -> None:
    for html in pages.values():
        links = re.findall(r'(?:src|href|url)\s*[=(]\s*["\']?([^"\')>]*)', html)
        assert all(link.startswith("#") for link in links)
        assert "<script" not in html
        assert "@import" not in html


def test_what_a_user_wrote_is_text_and_no_markup(pages: dict[str, str]) -> None:
    assert "Only $99 &amp; &#34;free&#34; &lt;script&gt;" in pages["run"]
    assert "<z>" not in pages["run"]
    assert "<b>" not in pages["calibrate"].replace("<b>platt", "").replace("<b>shift", "").split("<h2>")[1]


class Figures(HTMLParser):
    """Whether each tag is closed, and what each figure says to those who do not see it."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.alt: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "figure":
            self.alt.append(dict(attrs).get("aria-label") or "")
        if tag not in ("meta", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        pass

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_tags_close_and_every_chart_is_told_in_words(pages: dict[str, str]) -> None:
    for name, html in pages.items():
        parser = Figures()
        parser.feed(html)
        assert parser.open == []
        assert parser.alt, name
        assert all(len(alt) > 20 for alt in parser.alt)


def test_two_charts_of_a_page_share_no_id(pages: dict[str, str]) -> None:
    for html in pages.values():
        charts = re.findall(r"<svg.*?</svg>", html, flags=re.DOTALL)
        clips = [set(re.findall(r'<clipPath id="([^"]+)"', chart)) for chart in charts]
        assert sum(map(len, clips)) == len(set().union(*clips))


def test_charts_take_the_pages_text_colour(pages: dict[str, str]) -> None:
    assert "currentColor" in pages["run"]
    assert "#010203" not in pages["run"]


def test_a_page_is_smaller_than_a_megabyte(pages: dict[str, str]) -> None:
    assert max(map(len, pages.values())) < 1_000_000


def test_the_same_results_give_the_same_page(pages: dict[str, str]) -> None:
    assert render(run_page(figures(people()), people())) == pages["run"]


def test_a_simulated_run_and_missing_answers_are_said_above_all_figures() -> None:
    html = render(run_page(figures(people(), simulated=True), people()))
    assert html.index(SIMULATED) < html.index("CTR by the model")
    assert "1 of 60 people have no answer" in html


def test_a_real_run_has_no_banner_of_a_simulation(pages: dict[str, str]) -> None:
    assert SIMULATED not in pages["run"]


def test_a_run_without_a_single_answer_has_a_page() -> None:
    table = results([float("nan")] * 3, age=[20, 30, 40])
    assert "No person has an answer" in render(run_page(figures(table) | {"ctr": None}, table))


def test_provenance_names_model_engine_prompts_and_seed(pages: dict[str, str]) -> None:
    foot = pages["run"].split("<footer>")[1]
    for said in ("vllm 1", "ctr/v2", ">42<", "job-1"):
        assert said in foot


def test_a_calibrated_page_leads_with_the_calibrated_rate(pages: dict[str, str]) -> None:
    html = pages["calibrated run"]
    assert html.index("CTR, calibrated") < html.index("CTR by the model")
    assert "Reliability:" in html


def test_a_list_is_one_cell_of_the_csv(tmp_path: Path) -> None:
    paths = report.write(tmp_path, people(), {"rows": 60})
    assert pa_csv.read_csv(paths[1])["interests"].to_pylist()[:2] == ["a; b", "a"]


def test_a_page_that_cannot_be_written_names_the_path(tmp_path: Path, calibration: Calibration) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(Exception, match="file"):
        write_page(calibrate_page(calibration), tmp_path / "file" / "page.html")
