"""A self-contained HTML page: what a report is made of, and its rendering. Loads nothing from anywhere."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import jinja2

from serve_app.atomic import atomic_write
from serve_app.errors import StoreError


@dataclass(frozen=True, slots=True)
class Tile:
    """A headline figure."""

    name: str
    value: str
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Chart:
    """An SVG element, and in words what it shows, for those who do not see it."""

    svg: str
    alt: str
    caption: str = ""


@dataclass(frozen=True, slots=True)
class Grid:
    """A table; `numbers` are the columns that are aligned right."""

    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    numbers: Sequence[int] = ()


@dataclass(frozen=True, slots=True)
class Section:
    """Words, charts, and under the charts the same as a table. A `folded` table is long, and shown on a click."""

    title: str
    paragraphs: Sequence[str] = ()
    charts: Sequence[Chart] = ()
    table: Grid | None = None
    folded: bool = False


@dataclass(frozen=True, slots=True)
class Page:
    """A report. `kind` is what it is a report of, `sentence` what it comes to, for who reads no further, and `lead` how
    that is to be taken. `warnings` stand in banners above all figures; `provenance` at the end."""

    kind: str
    title: str
    sentence: str
    lead: str
    tiles: Sequence[Tile]
    sections: Sequence[Section]
    provenance: Sequence[tuple[str, str]]
    warnings: Sequence[str] = ()


def render(page: Page) -> str:
    """The page as HTML. All text is escaped; only the charts are markup."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("serve_app.workloads.report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
    )
    return environment.get_template("page.html.j2").render(page=page)


def write_page(page: Page, path: Path) -> Path:
    """Render to `path`. Raises StoreError."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as file:
            file.write(render(page).encode())
    except OSError as error:
        raise StoreError(f"--out: cannot write {path}: {error.strerror or error}") from error
    return path


SIMULATED = "SIMULATED ENGINE: these figures come from a made-up model and say nothing about the world."


def percent(value: float | None, digits: int = 2) -> str:
    """A share in percent, or a dash."""
    return "–" if value is None else f"{100 * value:.{digits}f} %"


def points(value: float | None) -> str:
    """A difference of shares in percentage points, signed, or a dash."""
    return "–" if value is None else f"{100 * value:+.2f}"


def interval(low: float | None, high: float | None) -> str:
    """A range of shares in percent, or a dash."""
    return "–" if low is None or high is None else f"{100 * low:.2f} to {100 * high:.2f} %"


def about(mean: float, low: float, high: float, what: str) -> str:
    """What a share does, in words, with as many decimals as its interval allows: 0.5 % would click (0.2 to 1.2 %)."""
    width = 100 * (high - low)
    digits = next((digits for digits in range(4) if 10**-digits <= width / 2), 0 if width == 0 else 4)
    return f"{100 * mean:.{digits}f} % {what} ({100 * low:.{digits}f} to {100 * high:.{digits}f} %)"


def listed(names: Sequence[str], most: int) -> str:
    """The first `most` names, and how many more there are."""
    more = len(names) - most
    return "; ".join(names[:most]) + (f"; and {more:,} more" if more > 0 else "")


def shortened(text: str, longest: int) -> str:
    """The text, or its first words and an ellipsis; of a word that is too long by itself, the beginning."""
    if len(text) <= longest:
        return text
    start = text[:longest]
    return (start.rpartition(" ")[0] if " " in start[longest // 2 :] else start[:-1]).rstrip(" ,;:–-") + "…"
