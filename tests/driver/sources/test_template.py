import datetime
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve_app.driver.sources.template import RowMaker, Template, as_text
from serve_app.errors import BadSettings
from serve_app.schema import Row
from serve_app.spec import JobSpec

VALUES = st.none() | st.text() | st.integers() | st.floats(allow_nan=False) | st.booleans()


def made(values: dict[str, Any], number: int = 0, **spec: Any) -> Row:
    return RowMaker(JobSpec(source="people.csv", **spec)).row(number, values)


@given(st.text(), VALUES, VALUES)
def test_text_is_kept_as_it_is_and_each_field_is_its_columns_value(text: str, a: Any, b: Any) -> None:
    escaped = text.replace("{", "{{").replace("}", "}}")
    template = Template(f"{escaped}{{a}}{escaped}{{b b}}{{a}}", "prompt")
    shown = [("" if value is None else str(value)) for value in (a, b)]
    assert template.render({"a": a, "b b": b}) == f"{text}{shown[0]}{text}{shown[1]}{shown[0]}"
    assert template.columns == ("a", "b b", "a")


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, ""),
        (3, "3"),
        (3.0, "3.0"),
        (1e22, "1e+22"),
        (True, "True"),
        (b"caf\xc3\xa9", "café"),
        (["a", 1], '["a",1]'),
        ({"a": None}, '{"a":null}'),
        (datetime.date(2026, 1, 31), "2026-01-31"),
    ],
)
def test_a_value_is_written_as_a_reader_would(value: Any, text: str) -> None:
    assert as_text(value) == text
    assert Template("{a}", "prompt").render({"a": value}) == text


@pytest.mark.parametrize(
    "text",
    ["{a.__class__}", "{a[0]}", "{a!r}", "{a:>10}", "{a:{b}}", "{}", "{a", "a}", '{"answer": 1}', "{a!x}"],
)
def test_what_is_no_plain_field_is_refused_by_the_fields_name(text: str) -> None:
    with pytest.raises(BadSettings, match=r"^prompt: .*write \{\{ (or|and) \}\}"):
        RowMaker(JobSpec(source="x.csv", prompt=text))
    with pytest.raises(BadSettings, match=r"^messages\[1\]\.content: "):
        RowMaker(
            JobSpec(source="x.csv", messages=({"role": "system", "content": "Hi"}, {"role": "user", "content": text}))
        )


def test_a_column_that_the_data_lack_is_named_with_the_nearest_that_they_have() -> None:
    columns = ["name", "age", "country"]
    wrong: list[tuple[dict[str, Any], str, str]] = [
        ({"prompt": "{nmae}"}, "prompt", "'name'"),
        ({"messages": ({"role": "user", "content": "{agee}"},)}, r"messages\[0\].content", "'age'"),
        ({"prompt": "{age}", "length_column": "lenght"}, "length_column", "'name', 'age', 'country'"),
        ({"prompt": "{age}", "id_column": "county"}, "id_column", "'country'"),
    ]
    for spec, field, near in wrong:
        with pytest.raises(BadSettings, match=f"^{field}: x.csv has no column .*; nearest: {near}"):
            RowMaker(JobSpec(source="x.csv", **spec)).check(columns, "x.csv")


def test_data_without_prompts_need_a_template() -> None:
    with pytest.raises(BadSettings, match="^prompt: x.csv has no column 'messages' or 'prompt'.*'name'"):
        RowMaker(JobSpec(source="x.csv")).check(["name"], "x.csv")


def test_only_the_columns_that_are_used_are_needed() -> None:
    columns = ["prompt", "name", "custom_id", "messages", "tokens", "age"]
    templated = RowMaker(JobSpec(source="x.csv", prompt="{age}", length_column="tokens"))
    assert templated.check(columns, "x.csv") == ["custom_id", "tokens", "age"]
    assert RowMaker(JobSpec(source="x.csv")).check(columns, "x.csv") == ["prompt", "custom_id", "messages"]


def test_a_chats_constant_turns_are_one_object_in_all_rows() -> None:
    messages = ({"role": "system", "content": "Be {{brief}}, 100 %."}, {"role": "user", "content": "I am {name}."})
    maker = RowMaker(JobSpec(source="x.csv", messages=messages))
    ann, bob = (maker.row(0, {"name": name}) for name in ("Ann", "Bob"))
    assert ann.messages == (
        {"role": "system", "content": "Be {brief}, 100 %."},
        {"role": "user", "content": "I am Ann."},
    )
    assert bob.messages[1]["content"] == "I am Bob."
    assert ann.messages[0] is bob.messages[0]


@pytest.mark.parametrize(
    ("given", "expected"), [("a", "a"), (7, "7"), (1.5, "1.5"), (b"a", "a"), (None, "row-5"), ("", "row-5"), (0, "0")]
)
def test_an_id_is_the_columns_scalar_as_text_or_the_rows_place(given: Any, expected: str) -> None:
    assert made({"key": given, "prompt": "x"}, 4, id_column="key").custom_id == expected
    assert made({"prompt": "x"}, 4, id_column="key").custom_id == "row-5"


@pytest.mark.parametrize(
    ("given", "tokens"),
    [
        (120, 120),
        ("120", 120),
        (7.9, 7),
        ("1e3", 1000),
        (None, 0),
        ("", 0),
        ("n/a", 0),
        (-3, 0),
        ("nan", 0),
        ("inf", 0),
    ],
)
def test_the_expected_length_is_a_positive_number_or_unknown(given: Any, tokens: int) -> None:
    assert made({"n": given, "prompt": "x"}, length_column="n").expected_tokens == tokens


def test_without_a_template_a_row_brings_its_own_messages_or_prompt() -> None:
    chat = [{"role": "user", "content": "Hi"}]
    assert made({"prompt": "Hi"}) == Row("row-1", prompt="Hi")
    assert made({"messages": chat, "prompt": "unused"}) == Row("row-1", tuple(chat))
    assert made({"messages": '[{"role": "user", "content": "Hi"}]'}) == Row("row-1", tuple(chat)), "as CSV has it"
    assert made({"messages": [{**chat[0], "name": None}]}) == Row("row-1", tuple(chat)), "as Parquet has it"
    assert made({"messages": chat}, prompt="Say {word}").error == "no column 'word'; the row has 'messages'"


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        ({"a": 1}, "^no messages and no prompt; the row has 'custom_id', 'a'$"),
        ({}, "no messages and no prompt"),
        ({"error": "line 7: age is empty"}, "^line 7: age is empty$"),
        ({"messages": []}, "messages: give at least one"),
        ({"messages": [{"role": "user"}]}, 'messages: .*"content"'),
        ({"messages": [{"role": "user", "content": None}]}, 'messages: .*"content"'),
        ({"messages": [{"role": "user", "content": [1]}]}, "messages: Expected `str`"),
        ({"messages": ["Hi"]}, "messages: Expected `object`"),
        ({"messages": "Hi"}, "messages: "),
        ({"messages": 3}, "messages: Expected `array`"),
        ({"prompt": b"\xff"}, "utf-8"),
    ],
)
def test_a_row_that_asks_nothing_has_an_error_and_keeps_its_id(values: dict[str, Any], problem: str) -> None:
    row = made({"custom_id": "a", **values})
    assert row.custom_id == "a"
    assert row.error is not None
    assert not row.messages
    assert row.prompt is None
    assert re.search(problem, row.error)
