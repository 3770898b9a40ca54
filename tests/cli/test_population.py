"""`serve-app population submit`: what it says of a file before it sends it."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from serve_app.cli import app
from serve_app.errors import BadSettings
from tests.workloads.ctr.fakes import FakeClient


@pytest.fixture(autouse=True)
def sent(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Files that were sent."""
    found: list[str] = []

    class Client(FakeClient):
        def upload(self, spec: object) -> str:
            found.append(str(spec))
            return "job"

    client = Client(lambda system, user: {})
    monkeypatch.setattr("serve_app.client.populations.PopulationClient", lambda base_url: client)
    return found


def submit(path: Path, *arguments: str) -> tuple[str, BaseException | None]:
    result = CliRunner().invoke(app, ["population", "submit", str(path), "--prompt", "{age}", *arguments])
    return result.output.replace(f"{path.parent}/", ""), result.exception


def test_how_a_table_is_read_is_said_before_it_is_sent(tmp_path: Path, sent: list[str]) -> None:
    path = tmp_path / "people.csv"
    path.write_bytes("Kunden, alle;;\nage;Ort;x\n34;Köln;1\n".encode("cp1252"))
    said = "people.csv read as `;`, cp1252: 3 columns (age, Ort, x); the header is line 2, below a title\n"
    assert submit(path) == (said + "job\n", None)
    assert submit(path, "--json") == ('{"id": "job"}\n', None)
    assert len(sent) == 2


def test_a_table_that_is_none_is_not_sent(tmp_path: Path, sent: list[str]) -> None:
    path = tmp_path / "people.xlsx"
    path.write_bytes(b"<html>")
    _, error = submit(path)
    assert isinstance(error, BadSettings)
    assert "people.xlsx: is no workbook that can be read" in str(error)
    assert not sent
    path = tmp_path / "people.jsonl"
    path.write_text('{"age": 3}\n')
    assert submit(path) == ("job\n", None)
