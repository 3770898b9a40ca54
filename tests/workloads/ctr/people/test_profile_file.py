"""A user's own people: columns, types, and rows that make nobody."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pa_parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serve_app.errors import BadSettings
from serve_app.workloads.ctr.people.bank import load_bank
from serve_app.workloads.ctr.people.profile_file import ProfileFile, read_people
from serve_app.workloads.ctr.people.profiles import Profile, generate_profiles


def read(path: Path, **options: Any) -> list[Profile]:
    return read_people(ProfileFile(path, **options), load_bank("default")).profiles


def write(folder: Path, records: list[dict[str, Any]], kind: str) -> Path:
    path = folder / f"people.{kind}"
    if kind == "parquet":
        pa_parquet.write_table(pa.Table.from_pylist(records), path)
    elif kind == "jsonl":
        path.write_text("".join(json.dumps(record) + "\n" for record in records))
    else:
        lines = [",".join(records[0]), *(",".join(f'"{value}"' for value in record.values()) for record in records)]
        path.write_text("\n".join(lines) + "\n")
    return path


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_people_are_the_same_from_every_format(tmp_path: Path, kind: str) -> None:
    records = [
        {"ID": "a", "Age": 34, "city": "Bonn", "wt": 2.0},
        {"ID": "b", "Age": 51, "city": 'Köln, "Süd"'.replace('"', "'"), "wt": 0.5},
    ]
    people = read(
        write(tmp_path, records, kind), columns={"age": "Age", "city": "city"}, id_column="ID", weight_column="wt"
    )
    assert people == [
        Profile("a", {"age": 34, "city": "Bonn"}, "age: 34, city: Bonn", 2.0),
        Profile("b", {"age": 51, "city": "Köln, 'Süd'"}, "age: 51, city: Köln, 'Süd'", 0.5),
    ]


def test_without_a_map_all_columns_but_id_and_weight_are_attributes(tmp_path: Path) -> None:
    path = write(tmp_path, [{"ID": "a", "age": 34, "city": "Bonn", "wt": 2}], "csv")
    assert list(read(path, id_column="ID", weight_column="wt")[0].attributes) == ["age", "city"]


def test_a_file_with_all_of_the_banks_attributes_is_described_as_the_bank_does(tmp_path: Path) -> None:
    known = generate_profiles(30)
    path = write(tmp_path, [dict(person.attributes) for person in known], "jsonl")
    people = read(path)
    assert [person.description for person in people] == [person.description for person in known]
    assert [person.attributes for person in people] == [person.attributes for person in known]


def test_an_own_description_is_used(tmp_path: Path) -> None:
    path = write(tmp_path, [{"age": 34, "is_married": "yes"}], "csv")
    assert read(path, describe="{age}-year-old, {is_married}")[0].description == "34-year-old, married"


BAD = """name,age,illness,wt
Ann,34,,1
Bob,old,,1
Cid,40
"Di
ana",41,Asthma,1
Eve,42.5,,1
Fay,,,1
Ann,50,,1
,51,,1
Gil,52,,-1
Hal,53,,many
Ida,54,,1
"""


def test_each_bad_row_is_listed_with_its_line_and_reason_and_the_good_ones_stay(tmp_path: Path) -> None:
    path = tmp_path / "people.csv"
    path.write_bytes(BAD.encode() + b"J\x81,55,,1\n\nKai,56,,1\n")
    people = read(path, id_column="name", weight_column="wt", require=("age",))
    assert [person.id for person in people if person.error is None] == ["Ann", "Di\nana", "Ida", "Kai"]
    assert [(person.id, person.error) for person in people if person.error is not None] == [
        ("Bob", "line 3: age: 'old' is not a number"),
        ("row-3-unreadable", "line 4: 2 fields, where the header has 4"),
        ("Eve", "line 7: age: '42.5' is not a whole number"),
        ("Fay", "line 8: age: is empty"),
        ("row-7-unreadable", "line 9: name: 'Ann' is line 2's too"),
        ("row-8-unreadable", "line 10: name: is empty"),
        ("Gil", "line 11: wt: a weight of -1 is not above 0"),
        ("Hal", "line 12: wt: 'many' is not a number"),
        ("row-12-unreadable", "line 14: the line is not UTF-8"),
    ]
    assert people[0].attributes["illness"] is None


def test_bad_json_lines_are_listed(tmp_path: Path) -> None:
    path = tmp_path / "people.jsonl"
    path.write_text(
        '{"age": 1}\n\n[1]\n{"age": true}\n{"age": [1, {}]}\n{"city": "x"}\n{"age": 2, "city": ["a", "b"]}\n'
    )
    people = read(path, columns={"age": "age", "city": "city"}, require=("all",))
    assert [person.error for person in people] == [
        "line 1: city: is empty",
        "line 3: is no JSON object: Expected `object`, got `array`",
        "line 4: age: True is not a number",
        "line 5: age: a list is not one value",
        "line 6: age: is empty",
        None,
    ]
    assert people[-1].attributes == {"age": 2, "city": "a, b"}


@pytest.mark.parametrize(
    ("text", "options", "problem"),
    [
        ("a,b\n1,2\n", {"columns": {"age": "Age"}}, "has no column 'Age'; it has a, b"),
        ("a,b\n1,2\n", {"id_column": "ID"}, "has no column 'ID'"),
        ("a,b\n1,2\n", {"columns": {"click": "a"}}, "--map: 'click' is a column of the results"),
        ("status,b\n1,2\n", {}, "--map: 'status' is a column of the results"),
        ("a,a\n1,2\n", {}, "two columns 'a'"),
        ("a,b\n", {}, "has no rows"),
        ("", {}, "line 1 has no column names: the file is empty"),
        ("a,b\n1\n2\n", {}, "no row makes a person; line 2: 1 fields"),
        ("a,b\n1,2\n", {"describe": "{c}"}, r"--describe: describe: '\{c\}' is no attribute; these are: a, b"),
    ],
)
def test_a_file_that_cannot_be_people_is_refused(
    tmp_path: Path, text: str, options: dict[str, Any], problem: str
) -> None:
    path = tmp_path / "people.csv"
    path.write_text(text)
    with pytest.raises(BadSettings, match=problem):
        read(path, **options)


@pytest.mark.parametrize(("name", "problem"), [("none.csv", "No such file"), ("x.doc", "end the name with")])
def test_a_file_that_is_not_there_or_unknown_is_named(tmp_path: Path, name: str, problem: str) -> None:
    with pytest.raises(BadSettings, match=problem):
        read(tmp_path / name)


def test_a_parquet_file_that_is_none_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.parquet").write_bytes(b"no parquet at all")
    with pytest.raises(BadSettings, match="x.parquet"):
        read(tmp_path / "x.parquet")


@given(st.binary(max_size=300))
@settings(deadline=None, max_examples=150)
def test_no_line_of_any_file_is_lost(tmp_path_factory: pytest.TempPathFactory, noise: bytes) -> None:
    path = tmp_path_factory.mktemp("noise") / "people.jsonl"
    path.write_bytes(b'{"age": 1}\n' + noise)
    lines = [line for line in noise.split(b"\n") if line.strip()]
    assert len(read(path, columns={"age": "age"})) == 1 + len(lines)
