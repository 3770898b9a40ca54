"""JSON that is drawn by a schema is valid by it, whatever the schema says."""

from __future__ import annotations

import json
import time
from random import Random
from typing import Any

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve_app.engine.simulated.pen import MOST_BYTES
from serve_app.engine.simulated.requests import RequestRefused
from serve_app.engine.simulated.structured import by_grammar, by_schema, tidy

TREE: dict[str, Any] = {
    "$defs": {
        "node": {
            "type": "object",
            "properties": {"value": {"type": "number"}, "kids": {"type": "array", "items": {"$ref": "#/$defs/node"}}},
            "required": ["value", "kids"],
        }
    },
    "$ref": "#/$defs/node",
}
SCHEMAS: list[dict[str, Any]] = [
    {},
    {"type": "object"},
    {"type": "null"},
    {"type": ["string", "null"]},
    {"type": "integer", "minimum": 1000, "maximum": 1010},
    {"type": "number", "exclusiveMinimum": 0, "maximum": 0.5},
    {"type": "integer", "multipleOf": 7},
    {"type": "string", "minLength": 40, "maxLength": 45},
    {"type": "string", "pattern": "^[A-Z]{3}-[0-9]{4}$"},
    {"type": "string", "format": "made-up"},
    {"enum": ["a", 1, None, [2]]},
    {"const": {"a": [1]}},
    {"type": "array", "minItems": 3, "maxItems": 4, "items": {"type": "boolean"}},
    {"type": "array", "minItems": 3, "items": {"type": "integer"}, "uniqueItems": True},
    {"type": "array", "prefixItems": [{"type": "integer"}, {"type": "string"}], "minItems": 2, "items": False},
    {"type": "object", "additionalProperties": {"type": "integer"}, "minProperties": 2},
    {"not": {"type": "string"}},
    {"anyOf": [{"type": "integer"}, {"type": "object", "properties": {"a": {"const": 1}}, "required": ["a"]}]},
    {"oneOf": [{"type": "integer"}, {"type": "number", "minimum": 0.5}]},
    {"allOf": [{"type": "object", "properties": {"a": {"type": "string"}}, "required": ["a"]},
               {"type": "object", "properties": {"b": {"type": "string"}}, "required": ["b"]}]},
    {"type": "object", "properties": {"properties": {"type": "string"}, "type": {"type": "integer"}},
     "required": ["properties", "type"]},
    TREE,
]  # fmt: skip
FORMATS = ["date", "date-time", "duration", "email", "hostname", "ipv4", "ipv6", "time", "uri", "uuid"]


@pytest.mark.parametrize("schema", SCHEMAS, ids=lambda schema: json.dumps(schema)[:60])
def test_what_is_drawn_is_valid(schema: dict[str, Any]) -> None:
    write = by_schema(schema, "field")
    for seed in range(20):
        jsonschema.validate(json.loads(write(Random(seed))), schema)


@pytest.mark.parametrize("name", FORMATS)
def test_formats_are_kept(name: str) -> None:
    schema = {"type": "string", "format": name}
    found = json.loads(by_schema(schema, "field")(Random(1)))
    jsonschema.validate(found, schema, format_checker=jsonschema.Draft202012Validator.FORMAT_CHECKER)
    assert found


leaves = st.one_of(
    st.fixed_dictionaries({"type": st.sampled_from(["string", "integer", "number", "boolean", "null"])}),
    st.lists(st.text(max_size=5) | st.integers() | st.booleans(), min_size=1).map(lambda values: {"enum": values}),
    st.integers(0, 30).map(lambda least: {"type": "string", "minLength": least, "maxLength": least + 5}),
    st.tuples(st.integers(-50, 50), st.integers(0, 50)).map(
        lambda pair: {"type": "integer", "minimum": pair[0], "maximum": pair[0] + pair[1]}
    ),
)
names = st.text("abcdefgh_", min_size=1, max_size=6)


def nested(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.one_of(
        st.dictionaries(names, inner, max_size=4).flatmap(
            lambda properties: st.lists(st.sampled_from(sorted(properties) or [""]), unique=True).map(
                lambda required: {
                    "type": "object",
                    "properties": properties,
                    "required": [name for name in required if name],
                }
            )
        ),
        st.tuples(inner, st.integers(0, 3)).map(lambda pair: {"type": "array", "items": pair[0], "minItems": pair[1]}),
        st.lists(inner, min_size=1, max_size=3).map(lambda members: {"anyOf": members}),
    )


@given(schema=st.recursive(leaves, nested, max_leaves=12), seed=st.integers(0, 100))
def test_what_is_drawn_is_valid_by_any_schema(schema: dict[str, Any], seed: int) -> None:
    found = by_schema(schema, "field")(Random(seed))
    jsonschema.validate(json.loads(found), schema)
    assert found == by_schema(schema, "field")(Random(seed))


def test_properties_that_the_schema_does_not_name_are_left_out() -> None:
    schema = {"type": "object", "properties": {"city": {"type": "string"}}}
    for seed in range(20):
        assert set(json.loads(by_schema(schema, "field")(Random(seed)))) <= {"city"}


def test_optional_properties_are_mostly_there() -> None:
    schema = {"type": "object", "properties": {"city": {"type": "string"}}, "required": []}
    found = [json.loads(by_schema(schema, "field")(Random(seed))) for seed in range(40)]
    assert 20 < sum(map(len, found)) < 40


def test_tidying_leaves_data_and_names_alone() -> None:
    schema = {"properties": {"format": {"const": {"type": "string", "format": "email"}}}, "additionalProperties": True}
    assert tidy(schema) == schema


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "foo"},
        {"type": "integer", "minimum": 5, "maximum": 3},
        {"$ref": "https://example.com/schema"},
        {"type": "object", "properties": {"a": {"$ref": "#"}}, "required": ["a"]},  # without end
        {"allOf": [{"type": "string"}, {"type": "integer"}]},
    ],
)
def test_a_schema_that_nothing_obeys_is_refused_soon(schema: dict[str, Any]) -> None:
    started = time.perf_counter()
    with pytest.raises(RequestRefused) as refused:
        by_schema(schema, "field")(Random(1))
    assert refused.value.answer.param == "field"
    assert time.perf_counter() - started < 10


def test_a_text_without_a_natural_end_is_bounded() -> None:
    assert len(by_grammar("regex", "[a-z0-9]+", "field")(Random(1))) < 100
    assert len(by_grammar("regex", "(ab)+c", "field")(Random(1))) < MOST_BYTES
