"""Outcomes as a table."""

import tempfile
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import fields, replace

from serve_app.driver.store.table import SCHEMA, from_table, to_table
from serve_app.schema import Outcome
from tests.driver.store.kit import OUTCOME, writer

TEXT = st.text(max_size=40)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False, allow_infinity=False) | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=5,
)
COUNT = st.integers(0, 2**40)
OUTCOMES = st.builds(
    Outcome,
    custom_id=TEXT,
    content_hash=st.binary(min_size=16, max_size=16).map(bytes.hex),
    status=st.sampled_from(["ok", "invalid", "failed"]),
    value=st.none() | st.dictionaries(TEXT, JSON, max_size=3),
    error=st.none() | TEXT,
    attempts=st.integers(0, 2**31 - 1),
    replica=st.none() | TEXT,
    model=TEXT,
    engine_version=st.none() | TEXT,
    simulated=st.booleans(),
    prompt_tokens=COUNT,
    cached_tokens=COUNT,
    completion_tokens=COUNT,
    latency_ms=st.floats(0, allow_infinity=False),
    finished_at=TEXT,
    reused_from=st.none() | TEXT,
)


@given(st.lists(OUTCOMES, max_size=5))
@settings(deadline=None)
def test_outcomes_survive_a_table_whatever_their_text(outcomes: list[Outcome]) -> None:
    assert from_table(to_table(outcomes)) == outcomes


@given(st.lists(OUTCOMES, min_size=1, max_size=3))
@settings(max_examples=15, deadline=None)
def test_outcomes_survive_the_disk_whatever_their_text(outcomes: list[Outcome]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        log = writer(folder)
        log.append(outcomes, {})
        assert list(log.outcomes()) == outcomes


def test_a_table_has_a_column_for_each_field_of_an_outcome() -> None:
    assert SCHEMA.names == [field.name for field in fields(Outcome)]
    assert to_table([OUTCOME]).schema == SCHEMA


def test_lone_surrogates_become_replacement_characters_and_pairs_become_one(tmp_path: Path) -> None:
    log = writer(tmp_path)
    odd = replace(OUTCOME, error="a\ud800b", value={"te\udfffxt": ["\ud83d\ude00", "\udc00"]})
    log.append([OUTCOME, odd], {})
    assert list(log.outcomes()) == [OUTCOME, replace(odd, error="a\ufffdb", value={"te\ufffdxt": ["😀", "\ufffd"]})]
