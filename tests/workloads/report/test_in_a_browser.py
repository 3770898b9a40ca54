"""Pages in a real browser: nothing lies outside of a phone's window, on the screen or on paper."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.journeys.pages import system_chromium
from tests.workloads.report.made_up_pages import pages

pytestmark = pytest.mark.browser
PHONE = 390


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with sync_api.sync_playwright() as playwright:
        try:
            started = playwright.chromium.launch(executable_path=system_chromium())
        except sync_api.Error as error:
            pytest.skip(f"no Chromium: install the system's, or run `playwright install chromium` ({error.name})")
        yield started
        started.close()


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("pages")
    made = {}
    for name, html in pages().items():
        made[name] = folder / f"{name}.html"
        made[name].write_text(html)
    return made


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_no_page_is_wider_than_a_phone(browser: Any, files: dict[str, Path], scheme: str) -> None:
    page = browser.new_page(viewport={"width": PHONE, "height": 800}, color_scheme=scheme)
    for name, path in files.items():
        page.goto(path.as_uri())
        page.evaluate("document.querySelectorAll('details').forEach(one => one.open = true)")
        assert page.evaluate("document.scrollingElement.scrollWidth") <= PHONE, name
    page.close()


def test_labels_of_charts_stay_inside_them(browser: Any, files: dict[str, Path]) -> None:
    page = browser.new_page(viewport={"width": PHONE, "height": 800})
    outside = """[...document.querySelectorAll('figure svg text')].filter(text => {
        const label = text.getBoundingClientRect(), chart = text.closest('svg').getBoundingClientRect();
        return label.left < chart.left - 1 || label.right > chart.right + 1;
    }).map(text => text.textContent)"""
    for name, path in files.items():
        page.goto(path.as_uri())
        assert page.evaluate(outside) == [], name
    page.close()


def test_dark_pages_are_dark_on_the_screen_and_light_on_paper(browser: Any, files: dict[str, Path]) -> None:
    page = browser.new_page(color_scheme="dark")
    page.goto(files["run"].as_uri())
    colour = "getComputedStyle(document.body).backgroundColor"
    assert page.evaluate(colour) == "rgb(20, 24, 30)"
    page.emulate_media(media="print", color_scheme="dark")
    assert page.evaluate(colour) == "rgb(255, 255, 255)"
    page.close()


def test_paper_has_the_folded_tables_too(browser: Any, files: dict[str, Path]) -> None:
    page = browser.new_page()
    page.goto(files["icm"].as_uri())
    page.emulate_media(media="print")
    assert page.locator("details table").last.bounding_box()["height"] > 500
    page.close()
