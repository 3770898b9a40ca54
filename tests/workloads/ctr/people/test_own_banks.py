"""Banks that users write: what is refused, and what every good one gives."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from serve_app.errors import BadSettings
from serve_app.workloads.ctr.people.bank import PACKAGED, Bank, load_bank
from serve_app.workloads.ctr.people.conditional import Conditional
from serve_app.workloads.ctr.people.distributions import (
    Interval,
    Levels,
)
from serve_app.workloads.ctr.people.profiles import generate_profiles
from tests.workloads.ctr.people.kit import plain

# --- what is refused ---

SHOPPERS: dict[str, Any] = {
    "name": "shoppers",
    "version": 1,
    "attributes": {
        "age": {"kind": "truncated_normal", "mean": 40, "std": 15, "min": 18, "max": 90},
        "member": {"kind": "bernoulli", "p": 0.3},
        "basket": {
            "kind": "conditional",
            "cases": [
                {"when": {"member": True, "age": {"below": 30}}, "then": {"kind": "uniform", "values": ["l", "m"]}},
                {"when": {"member": True, "age": {"min": 30}}, "then": {"kind": "constant", "value": "l"}},
            ],
            "otherwise": {"kind": "categorical", "shares": {"s": 0.7, "m": 0.3}},
        },
    },
}


def changed(path: str, value: Any) -> dict[str, Any]:
    """SHOPPERS with one field, named as errors name it, set to another value; None removes it."""
    bank: dict[str, Any] = json.loads(json.dumps(SHOPPERS))
    at: Any = bank
    *way, last = [int(step) if step.isdigit() else step for step in path.split(".")]
    for step in way:
        at = at[step]
    if value is None:
        del at[last]
    else:
        at[last] = value
    return bank


def uniform(*values: Any) -> dict[str, Any]:
    return {"kind": "uniform", "values": list(values)}


CASES = "attributes.basket.cases"


@pytest.mark.parametrize(
    ("path", "value", "problem"),
    [
        ("name", None, "name: Field required"),
        ("versoin", 1, "versoin: Extra inputs"),
        ("attributes", {}, "attributes: .*at least 1"),
        ("attributes.age.min", 91, "attributes.age.truncated_normal: min 91 is not below max 90"),
        ("attributes.age.std", 0, "attributes.age.truncated_normal.std: .*greater than 0"),
        ("attributes.age.min", 18.5, "attributes.age.truncated_normal: min 18.5 and max 90 .* must be whole"),
        ("attributes.age.mean", 4000, r"attributes.age.truncated_normal: only 0 of N\(4000, 15\)"),
        ("attributes.age.mean", math.inf, "attributes.age.truncated_normal.mean: .*finite"),
        ("attributes.member.p", 1.2, "attributes.member.bernoulli.p: .*less than or equal to 1"),
        ("attributes.member.kind", "gauss", "attributes.member: .*'gauss'"),
        ("attributes.likes", {"kind": "categorical", "shares": {"a": 0.5, "b": 0.4}}, "shares sum to 0.9, not 1"),
        ("attributes.likes", {"kind": "categorical", "shares": {"a": 1.5, "b": -0.5}}, "shares.b: .*greater than"),
        ("attributes.likes", {"kind": "categorical", "shares": {}}, "attributes.likes.categorical.shares: .*least 1"),
        ("attributes.likes", uniform(), "attributes.likes.uniform.values: .*at least 1"),
        ("attributes.likes", uniform("a", "b", "a"), "attributes.likes.uniform.values: 'a' is there twice"),
        ("attributes.likes", {"kind": "subset", "values": ["a"], "size": 2}, "size 2 is more than the 1 values"),
        ("attributes.p_click", uniform("a"), "'p_click' is a column of the results"),
        (f"{CASES}", [], f"{CASES.replace('basket', 'basket.conditional')}: give at least one case"),
        (f"{CASES}.0.when", {}, "cases.0.when: .*at least 1"),
        (f"{CASES}.0.when", {"memebr": True}, "attributes.basket: depends on 'memebr'.*; 'member' is"),
        (f"{CASES}.0.when", {"basket": "l"}, "attributes: in a circle, basket depends on basket"),
        (f"{CASES}.0.when.member", "yes", r"cases.0.when.member: 'yes' is no value; these are: true, false"),
        (f"{CASES}.0.when.member", {"min": 1}, "cases.0.when.member: a range is for numbers"),
        (f"{CASES}.0.when.age", 30, "cases.0.when.age: is a number, so give a range"),
        (f"{CASES}.0.when.age", {"below": 18}, "cases.0.when.age: nobody is there, the values are 18 to 90"),
        (f"{CASES}.0.when.age", {"min": 91}, "cases.0.when.age: nobody is there"),
        (f"{CASES}.0.when.age", {"min": 40, "below": 30}, "min 40 is not less than below 30"),
        (f"{CASES}.0.when.age", {}, "give min, below or both"),
        (f"{CASES}.0.when.age", {"below": 31}, "attributes.basket.cases 0 and 1 both apply to member true, age 30"),
        ("attributes.basket.otherwise", None, "attributes.basket.no case applies to member false, age 18"),
        ("columns", ["age"], "columns: must have every attribute once"),
        ("describe", "{age} {city}", r"describe: '\{city\}' is no attribute; these are: age, member, basket"),
        ("describe", "{age", "describe: expected '}'"),
        ("sensitive", ["memebr"], "sensitive: 'memebr' is no attribute; these are: age, member, basket"),
        ("words", {"memebr": {"true": "x"}}, "words: 'memebr' is no attribute"),
    ],
)
def test_a_wrong_bank_is_refused_and_the_field_named(path: str, value: Any, problem: str) -> None:
    with pytest.raises(BadSettings, match=problem):
        load_bank(changed(path, value))


def test_what_is_sensitive_is_drawn_and_not_told() -> None:
    person = generate_profiles(1, bank=load_bank(changed("sensitive", ["age"])))[0]
    assert "age" in person.attributes
    assert person.description.startswith("member: ")
    with pytest.raises(BadSettings, match=r"describe: tells '\{age\}', which is sensitive"):
        load_bank({**changed("sensitive", ["age"]), "describe": "{age} years"})


def test_a_gap_between_cases_is_found_wherever_it_is() -> None:
    cases = [
        {"when": {"age": {"below": 30}}, "then": uniform("a")},
        {"when": {"age": {"min": 31, "below": 60}}, "then": uniform("b")},
        {"when": {"age": {"min": 60}}, "then": uniform("c")},
    ]
    with pytest.raises(BadSettings, match="no case applies to age 30"):
        load_bank(changed("attributes.basket", {"kind": "conditional", "cases": cases}))


def test_an_otherwise_that_is_nobodys_is_refused() -> None:
    cases = [{"when": {"member": [True, False]}, "then": uniform("a")}]
    with pytest.raises(BadSettings, match="attributes.basket.otherwise: never applies"):
        load_bank(changed("attributes.basket", {"kind": "conditional", "cases": cases, "otherwise": uniform("b")}))


def test_longer_circles_are_named_whole() -> None:
    def on(parent: str) -> dict[str, Any]:
        return {"kind": "conditional", "cases": [{"when": {parent: "x"}, "then": uniform("x")}]}

    with pytest.raises(BadSettings, match="in a circle, .* depends on .* depends on .* depends on"):
        load_bank({"name": "x", "version": 1, "attributes": {"a": on("b"), "b": on("c"), "c": on("a")}})


@pytest.mark.parametrize(
    ("name", "text", "problem"),
    [
        ("b.yaml", "name: a\nname: b\n", "the key 'name' is given twice"),
        ("b.json", '{"name": 1, "name": 2}', "the key 'name' is given twice"),
        ("b.yaml", "name: [", "cannot be read"),
        ("b.yaml", "- a", "valid dictionary"),
        ("b.json", "{", "cannot be read"),
        ("b.yaml", None, "No such file"),
        ("b.txt", "", "bank '.*b.txt' is unknown: use default, rich, or a .yaml or .json file"),
    ],
)
def test_a_file_that_is_no_bank_is_named(tmp_path: Path, name: str, text: str | None, problem: str) -> None:
    if text is not None:
        (tmp_path / name).write_text(text)
    with pytest.raises(BadSettings, match=problem):
        load_bank(tmp_path / name)


def test_a_bank_is_the_same_from_yaml_json_and_its_own_dump(tmp_path: Path) -> None:
    said = {**SHOPPERS, "describe": "{age}, {member}", "words": {"member": {True: "in", False: "out"}}}
    (tmp_path / "b.yaml").write_text(yaml.safe_dump(said, sort_keys=False))
    (tmp_path / "b.json").write_text(json.dumps(said))  # JSON writes the keys true and false
    banks = [load_bank(tmp_path / "b.yaml"), load_bank(tmp_path / "b.json")]
    for name in PACKAGED:
        banks += [load_bank(name), Bank.model_validate(json.loads(load_bank(name).model_dump_json()))]
    for one, other in zip(banks[::2], banks[1::2], strict=True):
        assert generate_profiles(200, 1, one) == generate_profiles(200, 1, other)


@st.composite
def banks(draw: Any) -> dict[str, Any]:
    """A coherent bank with one attribute that depends on another by ranges or values that split its support."""
    attributes = {f"x{i}": draw(plain) for i in range(draw(st.integers(1, 3)))}
    parent = draw(st.sampled_from(sorted(attributes)))
    support = load_bank({"name": "x", "version": 1, "attributes": attributes}).attributes[parent].support
    if isinstance(support, Interval):
        cut = draw(st.integers(int(support.low), int(support.high)))
        splits: list[Any] = [{"below": cut}, {"min": cut}] if cut > support.low else [{"min": cut}]
    else:
        assert isinstance(support, Levels)
        splits = list(support.values)
    cases = [{"when": {parent: split}, "then": draw(plain)} for split in splits]
    return {
        "name": "x",
        "version": 1,
        "attributes": {**attributes, "child": {"kind": "conditional", "cases": draw(st.permutations(cases))}},
    }


@given(banks())
@settings(max_examples=60, deadline=None)
def test_every_coherent_bank_is_taken_and_gives_each_person_the_value_of_the_one_case_that_applies(
    said: dict[str, Any],
) -> None:
    bank = load_bank(said)
    child = bank.attributes["child"]
    assert isinstance(child, Conditional)
    for person in generate_profiles(60, 3, bank):
        (case,) = [case for case in child.cases if case.applies(person.attributes)]
        support, value = case.then.support, person.attributes["child"]
        if isinstance(support, Interval):
            assert isinstance(value, int)
            assert support.low <= value <= support.high
        else:
            assert isinstance(support, Levels)
            assert value in support.values


@given(banks(), st.data())
@settings(max_examples=60, deadline=None)
def test_a_case_that_is_taken_out_or_put_in_twice_is_refused(said: dict[str, Any], data: Any) -> None:
    cases = said["attributes"]["child"]["cases"]
    i = data.draw(st.integers(0, len(cases) - 1))
    wrong = [([*cases, cases[i]], "both apply")] + [(cases[:i] + cases[i + 1 :], "no case applies")] * (len(cases) > 1)
    for some, problem in wrong:
        child = {"kind": "conditional", "cases": some}
        with pytest.raises(BadSettings, match=problem):
            load_bank({**said, "attributes": {**said["attributes"], "child": child}})
