"""Weights come whole, verified and once."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from serve_app.errors import ModelNotFound
from serve_app.models.download import RemoteFile, download

WEIGHTS = b"weights" * 1000
FILES = [
    RemoteFile("config.json", 2, None),
    RemoteFile("model.safetensors", len(WEIGHTS), hashlib.sha256(WEIGHTS).hexdigest()),
]
REVISION = "a" * 40


class Hub:
    """Brings the files; the weights as `weights`, until that is exhausted."""

    def __init__(self, *weights: bytes) -> None:
        self.weights = list(weights)
        self.calls = 0

    def fetch(self, model: str, revision: str, folder: Path) -> None:
        self.calls += 1
        (folder / "config.json").write_text("{}")
        if not (folder / "model.safetensors").exists():
            (folder / "model.safetensors").write_bytes(self.weights.pop(0))

    def get(self, to: Path) -> Path:
        return download("owner/name", REVISION, to, fetch=self.fetch, files=lambda model, revision: FILES)


def test_the_folder_is_named_by_model_and_commit(tmp_path: Path) -> None:
    assert Hub(WEIGHTS).get(tmp_path) == tmp_path / "owner/name" / REVISION


def test_a_model_that_is_there_is_not_fetched_again(tmp_path: Path) -> None:
    hub = Hub(WEIGHTS)
    assert hub.get(tmp_path) == hub.get(tmp_path)
    assert hub.calls == 1


@pytest.mark.parametrize("wrong", [WEIGHTS[:-1], WEIGHTS[:-1] + b"x"], ids=["cut short", "other bytes"])
def test_what_is_not_the_hubs_never_appears_and_is_fetched_anew(tmp_path: Path, wrong: bytes) -> None:
    hub = Hub(wrong, WEIGHTS)
    with pytest.raises(ModelNotFound, match=r"model\.safetensors differ"):
        hub.get(tmp_path)
    assert not (tmp_path / "owner/name" / REVISION).exists()
    assert (hub.get(tmp_path) / "model.safetensors").read_bytes() == WEIGHTS


def test_what_was_stopped_goes_on(tmp_path: Path) -> None:
    partial = tmp_path / "owner/name" / f".{REVISION}.partial"
    partial.mkdir(parents=True)
    (partial / "model.safetensors").write_bytes(WEIGHTS)
    assert Hub().get(tmp_path).is_dir()  # a hub that has no weights to bring
