"""`serve-app keys`, by its command line."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from serve_app.cli.keys import app
from serve_app.errors import BadSettings
from serve_app.serving.gate.keys import KeyRing


def run(*arguments: str) -> str:
    """What the command prints, keys on standard output only."""
    result = CliRunner(env={"COLUMNS": "200"}).invoke(app, arguments, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


def test_a_created_key_is_all_that_is_printed_and_works_with_the_limits_that_were_given(tmp_path: Path) -> None:
    file = tmp_path / "keys.yaml"
    key = run("create", "alice", "--file", str(file), "--requests-per-minute", "5", "--scope", "populations").strip()
    found = KeyRing([file]).find(key)
    assert found is not None
    assert (found.name, found.requests_per_minute, found.scopes) == ("alice", 5, ("populations",))
    assert (found.tokens_per_minute, found.expires) == (None, None)


def test_revoking_shows_in_the_list_and_the_list_shows_no_key(tmp_path: Path) -> None:
    file = tmp_path / "keys.yaml"
    keys = [run("create", name, "--file", str(file)).strip() for name in ("alice", "bob")]
    run("revoke", "bob", "--file", str(file))
    listed = run("list", "--file", str(file))
    states = {name: line for line in listed.splitlines() for name in ("alice", "bob") if name in line}
    assert "active" in states["alice"]
    assert "revoked" in states["bob"]
    assert not any(key in listed for key in keys)


def test_a_wrong_scope_is_named_and_nothing_is_written(tmp_path: Path) -> None:
    file = tmp_path / "keys.yaml"
    with pytest.raises(BadSettings, match="--scope 'all' is unknown: use inference or populations"):
        run("create", "alice", "--file", str(file), "--scope", "all")
    assert not file.exists()
