"""YAML that would end a process, or grow without bound; and who reads YAML of users."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from serve_app.bounded_yaml import MOST_NESTED, check_size
from serve_app.errors import BadSettings
from serve_app.serving.gate.keys import read_keys
from serve_app.serving.launch.config import ServeConfig
from serve_app.workloads.ctr.people.bank import load_bank

# 10^8 values of 800 bytes.
LAUGHS = "a: &a [x,x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{chr(98 + i)}: &{chr(98 + i)} [{','.join(['*' + chr(97 + i)] * 10)}]\n" for i in range(7)
)
READERS = (ServeConfig.load, read_keys, load_bank)


@pytest.mark.parametrize("text", ["[" * 3000 + "]" * 3000, LAUGHS])
@pytest.mark.parametrize("read", READERS)
def test_what_would_end_the_process_is_refused(tmp_path: Path, read: Callable[[Path], Any], text: str) -> None:
    path = tmp_path / "in.yaml"
    path.write_text(text)
    with pytest.raises(BadSettings, match="nested deeper than 100|more than 1,000,000 values"):
        read(path)


@pytest.mark.parametrize("read", [read_keys, load_bank])
def test_deep_json_is_refused(tmp_path: Path, read: Callable[[Path], Any]) -> None:
    path = tmp_path / "in.json"
    path.write_text('{"a":' * 100_000)
    with pytest.raises(BadSettings, match=r"in\.json"):
        read(path)


@pytest.mark.parametrize("value", ['!!int ""', "!!bool x", "!!timestamp x", "!!float x", "!!binary ÿ"])
@pytest.mark.parametrize("read", READERS)
def test_a_value_that_is_not_what_its_tag_says_is_refused(
    tmp_path: Path, read: Callable[[Path], Any], value: str
) -> None:
    path = tmp_path / "in.yaml"
    path.write_text(f"a: {value}")
    with pytest.raises(BadSettings, match=r"in\.yaml"):
        read(path)


def test_a_bank_whose_key_is_a_list_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "in.yaml"
    path.write_text("? [a]\n: b\n")
    with pytest.raises(BadSettings, match="a key is a list or mapping"):
        load_bank(path)


@pytest.mark.parametrize(
    "text", ["", "a: 1", "[" * MOST_NESTED + "]" * MOST_NESTED, "a: &a [*a]", "a: &a [1, 2]\nb: *a", "a: 1\n---\nb: 2"]
)
def test_other_yaml_passes(text: str) -> None:
    check_size(text)
