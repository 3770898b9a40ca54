"""Looks at a page in a browser, where one is installed."""

from __future__ import annotations

import shutil
from pathlib import Path

WIDTHS = (390, 1280)
looked_at: list[str] = []


def system_chromium() -> str | None:
    """The system's browser; None for playwright's own, if `playwright install chromium` was run."""
    return next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


def check_page(path: Path) -> None:
    """Raises AssertionError for a page that is wider than the window, or that loads something from elsewhere.

    Without a browser only the file is looked at; `looked_at` then stays as it was.
    """
    html = path.read_text()
    assert "<script" not in html
    assert 'src="http' not in html
    try:
        from playwright.sync_api import Error, sync_playwright
    except ImportError:
        return
    with sync_playwright() as playwright:
        try:
            browser = playwright.chromium.launch(executable_path=system_chromium())
        except Error:  # the package is here, and no browser
            return
        for width in WIDTHS:
            for scheme in ("light", "dark"):
                page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
                page.goto(path.absolute().as_uri())
                wide = page.evaluate("document.scrollingElement.scrollWidth")
                assert wide <= width, f"{path.name} is {wide} px wide in a window of {width}"
                page.close()
        browser.close()
    looked_at.append(path.name)
