import os
from pathlib import Path

import pytest

from serve_app.models.identity import BLOCK_BYTES, EDGE_BYTES, WHOLE_BYTES, folder_of, hash_folder

SIZE = WHOLE_BYTES + 5


@pytest.fixture
def model(tmp_path: Path) -> Path:
    for name in ("config.json", "tokenizer.json", "chat_template.jinja"):
        (tmp_path / name).write_text(name)
    with (tmp_path / "model.safetensors").open("wb") as file:
        file.truncate(SIZE)
    return tmp_path


def write(file: Path, at: int, data: bytes) -> None:
    with file.open("r+b") as opened:
        opened.seek(at)
        opened.write(data)


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "chat_template.jinja"])
def test_every_small_file_counts_whole(model: Path, name: str) -> None:
    before = hash_folder(model)
    (model / name).write_text(name.upper())
    assert hash_folder(model) != before


@pytest.mark.parametrize("at", [0, EDGE_BYTES - 1, SIZE // 65 * 30 + BLOCK_BYTES // 2, SIZE - 1])
def test_weights_count_by_samples(model: Path, at: int) -> None:
    before = hash_folder(model)
    write(model / "model.safetensors", at, b"x")
    assert hash_folder(model) != before


def test_a_longer_file_and_a_renamed_one_count_and_what_says_nothing_of_answers_does_not(model: Path) -> None:
    before = hash_folder(model)
    (model / "README.md").write_text("new")
    (model / ".cache.json").write_text("new")
    (model / "original").mkdir()
    os.utime(model / "model.safetensors", (1, 1))
    assert hash_folder(model) == before
    (model / "model.safetensors").rename(model / "model-00001.safetensors")
    renamed = hash_folder(model)
    write(model / "model-00001.safetensors", SIZE, b"\0" * 8)
    assert len({before, renamed, hash_folder(model)}) == 3


def test_a_copy_elsewhere_is_the_same_model(model: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    copy = tmp_path_factory.mktemp("copy")
    for file in model.iterdir():
        (copy / file.name).symlink_to(file)  # as the hub's cache has them
    assert hash_folder(copy) == hash_folder(model)


def test_the_folder_of_a_model(model: Path) -> None:
    assert folder_of(str(model)) == model
    assert folder_of("nobody/has-fetched-this") is None
    assert folder_of("s3://bucket/model") is None
