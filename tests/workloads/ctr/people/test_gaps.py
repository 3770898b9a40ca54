"""Values that are missing or impossible, ids that nobody asked for, and what is said of them."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pa_parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve_app.errors import BadSettings
from serve_app.workloads.ctr.people.bank import load_bank
from serve_app.workloads.ctr.people.describe import Description
from serve_app.workloads.ctr.people.profile_file import People, ProfileFile, read_people
from serve_app.workloads.ctr.people.sample import Stratifier, draw_sample
from serve_app.workloads.ctr.people.values import MISSING


def read(folder: Path, text: str, **options: Any) -> People:
    path = folder / "people.csv"
    path.write_text(text)
    return read_people(ProfileFile(path, **options), load_bank("default"))


GAPS = "age,city,income\n34,Bonn,\n,Ulm,1200\n51,NA,-\n28,Köln,900\n"


def test_what_somebody_has_no_value_of_is_left_out_and_counted(tmp_path: Path) -> None:
    people = read(tmp_path, GAPS)
    assert [(one.description, one.error) for one in people.profiles] == [
        ("age: 34, city: Bonn", None),
        ("city: Ulm, income: 1200", None),
        ("age: 51", None),
        ("age: 28, city: Köln, income: 900", None),
    ]
    assert people.profiles[1].attributes == {"city": "Ulm", "income": "1200"}
    assert people.summary.missing == {"income": 2, "age": 1, "city": 1}
    assert people.summary.text == (
        "read as `,`, UTF-8: 4 people, 3 columns; 2 without income; 1 without age; 1 without city"
    )


def test_required_attributes_nobody_may_lack(tmp_path: Path) -> None:
    assert [one.error for one in read(tmp_path, GAPS, require=("income",)).profiles] == [
        "line 2: income: is empty",
        None,
        "line 4: income: is empty",
        None,
    ]
    people = read(tmp_path, GAPS, require=("all",))
    assert [one.error is None for one in people.profiles] == [False, False, False, True]
    assert people.summary.text == (
        "read as `,`, UTF-8: 1 person, 3 columns; 3 rows are nobody (line 2: income: is empty)"
    )
    with pytest.raises(BadSettings, match="--require 'incme' is no attribute; these are: age, city, income"):
        read(tmp_path, GAPS, require=("incme",))


def test_who_has_no_value_at_all_is_nobody(tmp_path: Path) -> None:
    people = read(tmp_path, "id,age,city\na,34,Bonn\nb,NA,-\n")
    assert [one.error for one in people.profiles] == [None, "line 3: no column has a value"]


@pytest.mark.parametrize("text", sorted(MISSING - {""}))
def test_every_way_to_write_no_value_is_one(tmp_path: Path, text: str) -> None:
    assert read(tmp_path, f"age,city\n{text},Bonn\n35, {text} \n").summary.missing == {"age": 1, "city": 1}


@pytest.mark.parametrize("text", ["0", "none", "no", "unknown", "x", "nil", "."])
def test_what_may_be_a_value_is_one(tmp_path: Path, text: str) -> None:
    assert read(tmp_path, f"age,city\n34,{text}\n").profiles[0].attributes["city"] == text


def test_missing_numbers_of_parquet_are_missing(tmp_path: Path) -> None:
    path = tmp_path / "people.parquet"
    pa_parquet.write_table(pa.table({"age": [34.0, float("nan"), None], "city": ["Bonn", "Ulm", "Köln"]}), path)
    people = read_people(ProfileFile(path), load_bank("default"))
    assert [one.attributes for one in people.profiles] == [
        {"age": 34, "city": "Bonn"}, {"city": "Ulm"}, {"city": "Köln"}
    ]  # fmt: skip
    assert people.summary.text == "read as Parquet: 3 people, 2 columns; 2 without age"


def test_an_empty_cell_that_says_something_is_said_and_no_answer_is_not(tmp_path: Path) -> None:
    people = read(tmp_path, "age,illness\n34,\n35,NA\n36,Asthma\n")
    assert [one.description for one in people.profiles] == [
        "age: 34, illness: healthy",
        "age: 35",
        "age: 36, illness: Asthma",
    ]


def test_impossible_values_are_told_and_stay(tmp_path: Path) -> None:
    people = read(tmp_path, "age,annual_income,visits\n-1,20-40k,3\n34,-500,-2\n400,,1\n122,0,0\n-3,1,1\n")
    assert people.summary.warnings == (
        "impossible age: -1 in line 2 and 2 more",
        "impossible annual_income: -500 in line 3",
        "impossible visits: -2 in line 3",
    )
    assert people.profiles[0].description == "age: -1, annual income: 20-40k, visits: 3"


def test_a_column_of_ids_is_used_unasked_if_each_row_has_its_own(tmp_path: Path) -> None:
    people = read(tmp_path, "ID,age\na,34\nb,35\n")
    assert [(one.id, one.attributes) for one in people.profiles] == [("a", {"age": 34}), ("b", {"age": 35})]
    people = read(tmp_path, "ID,years\na,34\nb,35\n", columns={"age": "years"})
    assert [one.id for one in people.profiles] == ["a", "b"]
    for ids in ("aa", "a "):
        people = read(tmp_path, f"ID,age\n{ids[0]},34\n{ids[1]},35\n")
        assert [(one.id, one.attributes) for one in people.profiles] == [("row-1", {"age": 34}), ("row-2", {"age": 35})]
        assert people.summary.warnings == ("column 'ID' is left out: not every row has an id of its own",)
    with pytest.raises(BadSettings, match="no row makes a person; line 2: ID: is empty"):
        read(tmp_path, "ID,age\n,34\n", id_column="ID")


def test_the_banks_columns_are_known_however_they_are_written(tmp_path: Path) -> None:
    people = read(tmp_path, "Age,Annual Salary,IS-MARRIED,Town\n34,20-40k,ja,Bonn\n")
    assert people.profiles[0].attributes == {
        "age": 34, "annual_salary": "20-40k", "is_married": True, "Town": "Bonn"
    }  # fmt: skip
    assert list(read(tmp_path, "Age,age\nx,34\n").profiles[0].attributes) == ["Age", "age"]


def test_a_file_of_unknown_columns_is_refused_unless_somebody_says_what_they_mean(tmp_path: Path) -> None:
    text = "Alter;Ort\n34;Bonn\n"
    with pytest.raises(BadSettings, match="read as `;`, UTF-8: no column is known .Alter, Ort.*--describe '.Alter.'"):
        read(tmp_path, text)
    assert read(tmp_path, text, describe="{Alter}, aus {Ort}").profiles[0].description == "34, aus Bonn"
    assert read(tmp_path, text, columns={"age": "Alter"}).profiles[0].attributes == {"age": 34}


def test_weights_have_decimal_commas_too(tmp_path: Path) -> None:
    people = read(tmp_path, "age;w\n34;0,5\n35;1,25\n", weight_column="w")
    assert [one.weight for one in people.profiles] == [0.5, 1.25]


def test_who_lacks_an_attribute_is_a_stratum_of_its_own(tmp_path: Path) -> None:
    people = read(tmp_path, GAPS).profiles
    by = Stratifier.parse("age:40")
    assert {by.stratum(one) for one in draw_sample(people, 3, 1, by=[by])} == {by.stratum(one) for one in people}
    assert [by.stratum(one) for one in people] == [
        "age below 40", "age unknown", "age from 40", "age below 40"
    ]  # fmt: skip
    with pytest.raises(BadSettings, match="--stratify: 'pet' is no attribute; these are: age, city, income"):
        draw_sample(people, 2, 1, by=[Stratifier.parse("pet")])


@pytest.mark.parametrize(
    ("template", "person", "said"),
    [
        ("{age}-year-old {sex}, from {city}, earns {pay}", {"age": 3, "sex": "m"}, "3-year-old m"),
        ("{age}-year-old {sex}, from {city}, earns {pay}", {"sex": "m", "pay": 9}, "unknown-year-old m, earns 9"),
        ("{age}, {sex}; from {city}", {"city": "Ulm"}, "from Ulm"),
        ("He is {age}. He lives in {city}. He earns {pay}.", {"city": "Ulm"}, "He lives in Ulm"),
        ("A person, {age}, of {city}", {"city": "Ulm"}, "A person, of Ulm"),
        ("", {"sex": "m"}, "sex: m"),
        ("age {age},{city}", {"age": 3}, "age 3,unknown"),
    ],
)
def test_a_clause_that_says_nothing_is_left_out(template: str, person: dict[str, Any], said: str) -> None:
    assert Description(template, ("age", "sex", "city", "pay")).of(person) == said


@given(st.sets(st.sampled_from(["a", "b", "c", "d"]), min_size=1), st.sampled_from([", ", "; ", ". ", "\n", " and "]))
def test_a_description_says_all_that_is_known_and_has_no_loose_ends(known: set[str], between: str) -> None:
    template = between.join(f"{name} is {{{name}}}" for name in "abcd")
    said = Description(template, ("a", "b", "c", "d")).of({name: f"<{name}>" for name in known})
    assert [name for name in "abcd" if f"<{name}>" in said] == sorted(known)
    if between != " and ":
        assert said == between.join(f"{name} is <{name}>" for name in sorted(known))
