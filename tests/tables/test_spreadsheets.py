"""Spreadsheets of all kinds, each read right or refused by name, by everything that reads tables."""

from pathlib import Path

import pytest

from serve_app.driver.sources.source import open_source
from serve_app.errors import BadSettings
from serve_app.spec import JobSpec
from serve_app.tables.table import read_table
from serve_app.workloads.ctr.people.bank import load_bank
from serve_app.workloads.ctr.people.profile_file import ProfileFile, read_people
from tests.tables.spreadsheets import HEADER, READ, REFUSED, SHEETS, Sheet

each = pytest.mark.parametrize("sheet", SHEETS, ids=lambda sheet: sheet.made_by)


def written(folder: Path, sheet: Sheet) -> Path:
    path = folder / f"people{sheet.ending}"
    path.write_bytes(sheet.content)
    return path


@each
def test_a_spreadsheet_has_its_columns_and_its_cells(tmp_path: Path, sheet: Sheet) -> None:
    table = read_table(written(tmp_path, sheet))
    rows = [table.cells(record) for _, record in table.records()]
    assert table.columns == HEADER
    assert [row[:3] for row in rows] == [list(person[:3]) for person in READ]
    assert [row[4] for row in rows] == [person[4] for person in READ]
    assert (table.read_as, table.notes) == (sheet.read_as, sheet.notes)


@each
def test_people_of_a_spreadsheet_are_who_they_are(tmp_path: Path, sheet: Sheet) -> None:
    people = read_people(ProfileFile(written(tmp_path, sheet)), load_bank("default"))
    assert [(one.id, *one.attributes.values()) for one in people.profiles] == [
        (who, int(age), city, income, joined)
        for (who, age, city, _, joined), income in zip(READ, sheet.income, strict=True)
    ]
    assert people.summary.text == "; ".join([f"read as {sheet.read_as}: 3 people, 4 columns", *sheet.notes])


@each
def test_the_driver_reads_the_same_rows_from_any_row_on(tmp_path: Path, sheet: Sheet) -> None:
    spec = JobSpec(source=str(written(tmp_path, sheet)), prompt="{age}, {city}, {joined}")
    source = open_source(spec, folder_url="unused")
    expected = [(who, f"{age}, {city}, {joined}") for who, age, city, _, joined in READ]
    assert [(row.custom_id, row.prompt) for row in source.rows()] == expected
    assert [(row.custom_id, row.prompt) for row in source.rows(1, 2)] == expected[1:2]
    assert (source.count(), list(source.ids())) == (3, [who for who, _ in expected])


@pytest.mark.parametrize(("ending", "content", "said"), [case[1:] for case in REFUSED], ids=[c[0] for c in REFUSED])
def test_what_cannot_be_read_right_is_refused_by_name(tmp_path: Path, ending: str, content: bytes, said: str) -> None:
    path = tmp_path / f"people{ending}"
    path.write_bytes(content)
    with pytest.raises(BadSettings, match=rf"people{ending}.*{said}"):
        read_people(ProfileFile(path), load_bank("default"))


def test_the_driver_names_the_file_that_was_sent_and_not_where_it_keeps_it(tmp_path: Path) -> None:
    for _, ending, content, _ in REFUSED:
        (tmp_path / f"input-people{ending}").write_bytes(content)
        with pytest.raises(BadSettings, match=rf"^\w+: (cannot read )?people{ending}") as caught:
            list(
                open_source(
                    JobSpec(source=f"job:input-people{ending}", prompt="{who}"), folder_url=str(tmp_path)
                ).rows()
            )
        assert str(tmp_path) not in str(caught.value)
