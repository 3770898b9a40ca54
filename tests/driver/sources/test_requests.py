"""The lines of a batch file."""

import json
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve_app.driver.sources.requests import Line, Problem, RequestRows, read_line
from serve_app.driver.sources.source import check_ids, open_source
from serve_app.errors import BadSettings
from serve_app.spec import JobSpec
from tests.driver.batches.kit import CHAT, ask


@given(st.lists(st.one_of(st.binary(max_size=40), st.sampled_from([json.dumps(ask(i)).encode() for i in "abc"]))))
def test_any_bytes_are_rows_with_ids_of_their_own_and_good_lines_keep_theirs(lines: list[bytes]) -> None:
    lines = [line.replace(b"\n", b" ") for line in lines]
    source = RequestRows(lambda: iter(line + b"\n" for line in lines), CHAT)
    rows = list(source.rows())
    assert len(rows) == sum(not (line + b"\n").isspace() for line in lines)
    assert len({row.custom_id for row in rows}) == len(rows)
    good = {row.custom_id for row in rows if row.error is None}
    assert good >= {i for i in "abc" if json.dumps(ask(i)).encode() in lines}
    assert list(source.ids()) == [row.custom_id for row in rows]
    check_ids(source)
    for start in range(len(rows) + 1):
        assert list(source.rows(start, start + 2)) == rows[start : start + 2]
    assert len(list(source.problems())) == len(rows) - len(good)


def test_a_body_is_kept_as_it_was_written() -> None:
    body = '{"model":"m", "x":{"a": 1.50},"big":123456789012345678901234567890,"text":"\\u00e9\\ud83d\\ude00"}'
    line = f'{{"body": {body} , "url":"{CHAT}","method":"POST","custom_id":"\\u00e9"}}'.encode()
    assert read_line(1, line, CHAT) == Line("é", body)


def test_a_line_that_is_too_long_is_refused_by_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serve_app.tables.lines.LONGEST_LINE", 200)
    path = tmp_path / "in.jsonl"
    path.write_bytes(b"\n".join(json.dumps(line).encode() for line in (ask("long", "x" * 300), ask("ok"))))
    source = open_source(JobSpec(source=str(path), endpoint=CHAT), folder_url="unused")
    assert [row.custom_id for row in source.rows()] == ["line-1-invalid", "ok"]


def test_a_csv_file_is_no_file_of_requests(tmp_path: Path) -> None:
    (tmp_path / "in.csv").write_text("custom_id,body\n")
    with pytest.raises(BadSettings, match="format: requests are JSON lines"):
        open_source(JobSpec(source=str(tmp_path / "in.csv"), endpoint=CHAT), folder_url="unused")
    with pytest.raises(BadSettings, match="nowhere"):
        open_source(JobSpec(source=str(tmp_path / "nowhere.jsonl"), endpoint=CHAT), folder_url="unused")


def test_a_problem_names_its_line_and_field() -> None:
    problem = read_line(4, json.dumps({**ask("x"), "method": "GET"}).encode(), CHAT)
    assert isinstance(problem, Problem)
    assert msgspec.to_builtins(problem) == {
        "line": 4, "code": "invalid_method", "message": "method: only POST is supported", "param": "method",
        "custom_id": "x",
    }  # fmt: skip
