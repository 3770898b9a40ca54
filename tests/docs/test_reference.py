"""The generated pages are what the code says now, and describe every field."""

import re

import pyarrow as pa

from serve_app.driver.http.results import flat_schema, value_fields
from tests.docs.generate import FOLDER, ROOT, reference


def test_the_generated_pages_are_up_to_date() -> None:
    stale = [path.name for path, text in reference().items() if not path.exists() or path.read_text() != text]
    assert stale == [], "run `make docs`"


def test_every_setting_and_field_of_a_body_has_a_meaning() -> None:
    for path, text in reference().items():
        if path.name != "cli.md":
            assert re.findall(r"(?m)^\| `(\w+)`.*\|\s*\|$", text) == []


def test_the_page_of_results_names_every_column() -> None:
    text = (FOLDER / "results.md").read_text()
    columns = flat_schema([*value_fields([]), *value_fields([], requests=True), pa.field("mass", pa.float64())])
    assert [name for name in columns.names if f"`{name}`" not in text] == []


def test_the_first_page_is_short() -> None:
    lines = (ROOT / "README.md").read_text().splitlines()
    assert len(lines) <= 100
    assert max(map(len, lines)) <= 120
