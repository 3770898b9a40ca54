"""The key file, written and read again, and the ring that a server looks keys up in."""

from __future__ import annotations

import json
import logging
import os
import stat
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from serve_app.errors import BadSettings
from serve_app.serving.gate import keys
from serve_app.serving.gate.key_file import create_key, revoke_key
from serve_app.serving.gate.keys import CHECK_EVERY_S, Key, KeyRing, hash_key, read_keys

FORMATS = pytest.mark.parametrize("name", ["keys.yaml", "keys.json"])


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@FORMATS
def test_a_created_key_is_found_by_itself_and_by_nothing_else(tmp_path: Path, name: str) -> None:
    file = tmp_path / name
    alice, bob = create_key(file, "alice", requests_per_minute=5), create_key(file, "bob", scopes=("populations",))
    ring = KeyRing([file])
    found = ring.find(alice)
    assert found is not None
    assert (found.name, found.requests_per_minute, found.state) == ("alice", 5, "active")
    assert ring.find(bob) is not None
    assert ring.find(alice + "x") is None
    assert ring.find(hash_key(alice)) is None


@FORMATS
def test_the_file_has_the_hash_and_not_the_key_and_only_its_owner_may_read_it(tmp_path: Path, name: str) -> None:
    file = tmp_path / name
    file.write_text("{}")
    file.chmod(0o644)
    key = create_key(file, "alice")
    assert key.startswith("sk-")
    assert len(key) == 46  # 32 bytes in base64
    assert key not in file.read_text()
    assert hash_key(key) in file.read_text()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert os.listdir(tmp_path) == [name]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=30, deadline=None)
@given(
    st.builds(
        Key,
        name=st.from_regex(r"\A[a-z0-9_.@-]{1,64}\Z"),
        sha256=st.binary(min_size=32, max_size=32).map(bytes.hex),
        expires=st.none() | st.datetimes(timezones=st.just(UTC)),
        disabled=st.booleans(),
        scopes=st.none() | st.lists(st.sampled_from(["inference", "populations"]), unique=True).map(tuple),
        requests_per_minute=st.none() | st.integers(1, 10**9),
    ),
    st.sampled_from(["keys.yaml", "keys.json"]),
)
def test_every_entry_reads_back_as_it_was_written(tmp_path: Path, key: Key, name: str) -> None:
    file = tmp_path / name
    file.write_text(json.dumps({"keys": [key.model_dump(mode="json")]}))
    create_key(file, "another-name-that-is-longer-than-sixty-four"[:40] + "X")
    assert read_keys(file)[0] == key


def test_a_revoked_key_is_revoked_on_a_running_server_within_seconds(tmp_path: Path) -> None:
    file, clock = tmp_path / "keys.yaml", Clock()
    key = create_key(file, "alice")
    ring = KeyRing([file], clock=clock)
    revoke_key(file, "alice")
    clock.now = CHECK_EVERY_S
    found = ring.find(key)
    assert found is not None
    assert found.state == "revoked"


def test_a_mounted_secret_is_followed_when_its_link_points_elsewhere(tmp_path: Path) -> None:
    clock, link = Clock(), tmp_path / "keys.yaml"
    old, new = create_key(tmp_path / "1.yaml", "alice"), create_key(tmp_path / "2.yaml", "alice")
    link.symlink_to("1.yaml")
    ring = KeyRing([link], clock=clock)
    assert ring.find(old) is not None
    (tmp_path / "next").symlink_to("2.yaml")
    (tmp_path / "next").rename(link)
    clock.now = CHECK_EVERY_S
    assert ring.find(old) is None
    assert ring.find(new) is not None


@pytest.mark.parametrize("edit", ["keys: [{name: alice, sha", "keys: [{name: alice, expires: 2027-02-30T00:00:00Z}]"])
def test_half_an_edit_locks_nobody_out_and_is_logged_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, edit: str
) -> None:
    file, clock = tmp_path / "keys.yaml", Clock()
    key = create_key(file, "alice")
    ring = KeyRing([file], clock=clock)
    file.write_text(edit)
    with caplog.at_level(logging.ERROR):
        for _ in range(3):
            clock.now += CHECK_EVERY_S
            assert ring.find(key) is not None
    assert [record.levelname for record in caplog.records] == ["ERROR"]


def test_a_server_does_not_start_without_the_key_file_that_it_is_told_of(tmp_path: Path) -> None:
    with pytest.raises(BadSettings, match=r"absent\.yaml: No such file"):
        KeyRing([tmp_path / "absent.yaml"])


@pytest.mark.parametrize(
    ("entry", "problem"),
    [
        ({"name": "a", "sha256": "00"}, r"keys\.0\.sha256"),
        ({"name": "a b", "sha256": "0" * 64}, r"keys\.0\.name"),
        ({"name": "a", "sha256": "0" * 64, "rpm": 1}, r"keys\.0\.rpm: Extra inputs"),
        ({"name": "a", "sha256": "0" * 64, "scopes": ["all"]}, r"keys\.0\.scopes"),
        ({"name": "a", "sha256": "0" * 64, "requests_per_minute": 0}, r"keys\.0\.requests_per_minute"),
        ({"name": "a", "sha256": "0" * 64, "expires": "2027-01-01T00:00:00"}, r"keys\.0\.expires"),
    ],
)
def test_a_wrong_entry_is_named_with_its_field(tmp_path: Path, entry: dict[str, object], problem: str) -> None:
    file = tmp_path / "keys.yaml"
    file.write_text(yaml.safe_dump({"keys": [entry]}))
    with pytest.raises(BadSettings, match=problem):
        KeyRing([file])


def test_a_name_is_one_key_over_all_files(tmp_path: Path) -> None:
    create_key(tmp_path / "1.yaml", "alice")
    create_key(tmp_path / "2.yaml", "alice")
    with pytest.raises(BadSettings, match="'alice' is in .*1.yaml too"):
        KeyRing([tmp_path / "1.yaml", tmp_path / "2.yaml"])
    with pytest.raises(BadSettings, match="a key named 'alice' already"):
        create_key(tmp_path / "1.yaml", "alice")


def test_a_file_may_be_written_by_hand_as_the_docstring_shows(tmp_path: Path) -> None:
    text = keys.__doc__ or ""
    example = text[text.index("    keys:") : text.index("YAML, or JSON")].replace("5e88…", hash_key("sk-mine"))
    (tmp_path / "keys.yaml").write_text(example)
    found = KeyRing([tmp_path / "keys.yaml"]).find("sk-mine")
    assert found is not None
    assert found.expires == datetime(2027, 11, 21, tzinfo=UTC)
    assert (found.state, found.scopes, found.tokens_per_minute) == ("revoked", ("inference",), 100_000)


def test_an_expired_key_says_so() -> None:
    past = datetime.now(UTC) - timedelta(seconds=1)
    assert Key(name="a", sha256="0" * 64, expires=past).state == "expired"
    assert Key(name="a", sha256="0" * 64, expires=past + timedelta(hours=1)).state == "active"


def test_keys_made_at_the_same_time_are_all_kept(tmp_path: Path) -> None:
    file = tmp_path / "keys.yaml"
    with ThreadPoolExecutor(8) as threads:
        made = list(threads.map(lambda i: create_key(file, f"key-{i}"), range(24)))
    ring = KeyRing([file])
    assert all(ring.find(key) for key in made)


def test_a_write_that_fails_leaves_the_old_file_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "keys.yaml"
    create_key(file, "alice")
    before = file.read_bytes()

    def fail(*args: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        create_key(file, "bob")
    assert file.read_bytes() == before
    assert os.listdir(tmp_path) == ["keys.yaml"]


def test_revoking_an_unknown_name_says_which_names_there_are(tmp_path: Path) -> None:
    create_key(tmp_path / "keys.yaml", "alice")
    with pytest.raises(BadSettings, match="no key named 'bob'"):
        revoke_key(tmp_path / "keys.yaml", "bob")
