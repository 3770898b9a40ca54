"""Readable text by a JSON schema, a regular expression, a grammar or a list of choices.

The grammars are llguidance's, as in vLLM's backend `guidance`: a Rust library without torch. jsonschema checks what
llguidance ignores (`uniqueItems`, `not`, unknown formats); an invalid draw is repeated.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import lru_cache
from itertools import islice
from random import Random
from typing import Any, Literal

from serve_app.engine.simulated.pen import MOST_BYTES, WORDS, problem, walk
from serve_app.engine.simulated.requests import RequestRefused, refused

MOST_DRAWS = 50
# Maximum braces tried as a schema's start.
MOST_STARTS = 200
# Patterns of formats, where the schema has none.
FORMATS = {
    "date": "2024-05-17",
    "date-time": "2024-05-17T09:30:00Z",
    "duration": "PT1H30M",
    "email": "simulated@example.com",
    "hostname": "simulated.example.com",
    "idn-email": "simulated@example.com",
    "ipv4": "192.0.2.1",
    "ipv6": "2001:db8::1",
    "time": "09:30:00Z",
    "uri": "https://example.com/simulated",
    "uuid": "6f1c7ad0-9b1e-4c52-8d53-2f0b8a1c9e77",
}
NOTHING = object()

# Draws a text, deterministic by generator.
Writer = Callable[[Random], str]


def json_object(said: str) -> Writer:
    """A JSON object, by the first object schema in the prompt: clients of JSON mode put it there."""
    schema = _schema_in(said)
    with suppress(RequestRefused):
        if schema is not None:
            return by_schema(schema, "messages")
    return lambda rng: json.dumps({"simulated": True, "answer": rng.choice(WORDS), "number": rng.randrange(100)})


def _schema_in(text: str) -> dict[str, Any] | None:
    decode, end = json.JSONDecoder().raw_decode, 0
    for start in islice((found.start() for found in re.finditer(r"\{", text)), MOST_STARTS):
        if start < end:  # inside one already read
            continue
        try:
            value, end = decode(text, start)
        except (ValueError, RecursionError):
            continue
        if isinstance(value, dict) and value.keys() & {"properties", "$defs"}:
            return value
    return None


def choice(options: list[str]) -> Writer:
    return lambda rng: rng.choice(options)


def by_schema(schema: Mapping[str, Any], field: str) -> Writer:
    """JSON that is valid by the schema. Raises RequestRefused, naming `field`, if no text satisfies it."""
    valid = _validity(schema, field)
    compiled = [_schema_grammar(json.dumps(one)) for one in (tidy(schema), schema)]
    grammars = [grammar for grammar, error in compiled if not error]
    if not grammars:
        raise refused(f"Invalid JSON schema: {compiled[-1][1]}", field)

    def write(rng: Random) -> str:
        for draw in range(MOST_DRAWS):
            # The tidied schema may allow nothing.
            found = walk(grammars[-1 if draw % 5 == 4 else 0], rng)
            if len(found) >= MOST_BYTES:
                break
            value = _read_json(found)
            if value is not NOTHING and valid(value):
                return json.dumps(value, ensure_ascii=False)  # removes duplicate names
        raise refused("The simulated engine found nothing that is valid by this JSON schema.", field)

    return write


def _validity(schema: Mapping[str, Any], field: str) -> Callable[[Any], bool]:
    """Whether a value is valid by the schema. Raises RequestRefused for an invalid schema."""
    from jsonschema.exceptions import SchemaError
    from jsonschema.validators import validator_for
    from referencing.exceptions import Unresolvable

    try:
        validator = validator_for(schema)
        validator.check_schema(schema)
    except (SchemaError, TypeError, AttributeError) as error:  # the last two if `$schema` is not text
        raise refused(f"Invalid JSON schema: {getattr(error, 'message', error)}", field) from error

    def valid(value: Any) -> bool:
        try:
            return bool(validator(schema).is_valid(value))
        except Unresolvable as error:
            raise refused(f"Invalid JSON schema: {error}", field) from error

    return valid


def by_grammar(kind: Literal["regex", "grammar"], text: str, field: str) -> Writer:
    """Text of a `regex` or `grammar` (Lark or GBNF). Raises RequestRefused, naming `field`, for an invalid one."""
    try:
        grammar, error = _other_grammar(kind, text)
    except ValueError as problem:
        grammar, error = "", str(problem)
    if error:
        raise refused(f"Invalid {kind}: {error}", field)
    return lambda rng: walk(grammar, rng)


def tidy(schema: Any) -> Any:
    """The schema without unnamed properties and random strings for formats, which make JSON hard to read."""
    if isinstance(schema, list):
        return [tidy(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    if schema.get("type") == "string" and schema.get("format") in FORMATS and "pattern" not in schema:
        return {"const": FORMATS[schema["format"]]}
    closed = {name: _tidy_value(name, value) for name, value in schema.items()}
    if isinstance(schema.get("properties"), dict):
        closed.setdefault("additionalProperties", False)
    elif schema.get("type") == "object" and not {"minProperties", "maxProperties"} & set(schema):
        closed["maxProperties"] = 3
    return closed


def _tidy_value(name: str, value: Any) -> Any:
    if name in ("enum", "const", "default", "examples"):
        return value
    if name in ("properties", "patternProperties", "$defs", "definitions") and isinstance(value, dict):
        return {key: tidy(one) for key, one in value.items()}
    return tidy(value)


@lru_cache(maxsize=256)
def _schema_grammar(schema: str) -> tuple[str, str]:
    from llguidance import LLMatcher

    options: Any = {"whitespace_flexible": False, "lenient": True, "coerce_one_of": True}
    try:
        grammar = LLMatcher.grammar_from_json_schema(schema, options)
    except ValueError as error:
        return "", str(error)
    return grammar, problem(grammar)


@lru_cache(maxsize=256)
def _other_grammar(kind: Literal["regex", "grammar"], text: str) -> tuple[str, str]:
    from llguidance import grammar_from

    grammar = grammar_from(kind, text)
    return grammar, problem(grammar)


def _read_json(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return NOTHING


def parsed(schema: Any, field: str) -> dict[str, Any]:
    """A schema, maybe as JSON text. Raises RequestRefused unless it is a JSON object."""
    if isinstance(schema, str):
        try:
            schema = json.loads(schema)
        except ValueError as error:
            raise refused(f"Invalid JSON schema: {error}", field) from error
    if not isinstance(schema, dict):
        raise refused("A JSON schema must be an object.", field)
    return schema


def arguments_of(parameters: Mapping[str, Any] | None, rng: Random) -> str:
    """Arguments by a tool's schema. Raises RequestRefused if no text satisfies it."""
    if not parameters:
        return "{}"
    return by_schema(parameters, "tools")(rng)
