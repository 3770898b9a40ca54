"""Brings a model's weights to a shared folder, before anything that costs GPUs waits for them.

    python -m serve_app.models.download meta-llama/Llama-3.1-8B-Instruct REVISION --to /data/models

A commit, not a branch, so that all replicas have the same. What is stopped goes on where it was. The folder
TO/MODEL/REVISION appears whole or not at all: files come to a folder beside it, are compared with the hub's sizes and
hashes, and the folder is renamed.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from serve_app.errors import BadSettings, ModelNotFound

# PyTorch's own format beside safetensors: the same weights again, and pickle.
LEFT_OUT = ("original/*", "*.pth", "*.bin", "consolidated*")
CHUNK_BYTES = 16 << 20


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """What the hub says of a file; small files have no hash of theirs."""

    path: str
    size: int
    sha256: str | None


def download(
    model: str,
    revision: str,
    to: Path,
    *,
    fetch: Callable[[str, str, Path], None] | None = None,
    files: Callable[[str, str], list[RemoteFile]] | None = None,
) -> Path:
    """The folder with the weights, fetched if need be. `fetch` and `files` are the hub's, but for tests.

    Raises ModelNotFound, naming the files, if what came is not what the hub has; the next try fetches those anew.
    """
    target = to / model / revision
    if target.is_dir():
        return target
    partial = target.with_name(f".{revision}.partial")
    partial.mkdir(parents=True, exist_ok=True)
    (fetch or _fetch)(model, revision, partial)
    if wrong := list(differences(partial, (files or _files)(model, revision))):
        for path in wrong:
            (partial / path).unlink(missing_ok=True)
        raise ModelNotFound(f"{model} at {revision}: {', '.join(wrong)} differ from the hub's; run it again")
    shutil.rmtree(partial / ".cache", ignore_errors=True)  # the hub's notes of what is half there
    os.rename(partial, target)
    return target


def differences(folder: Path, files: list[RemoteFile]) -> Iterator[str]:
    """Paths that are missing, or have another size or hash."""
    for file in files:
        path = folder / file.path
        if (
            not path.is_file()
            or path.stat().st_size != file.size
            or (file.sha256 is not None and _sha256(path) != file.sha256)
        ):
            yield file.path


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def _fetch(model: str, revision: str, folder: Path) -> None:
    from huggingface_hub import snapshot_download

    snapshot_download(model, revision=revision, local_dir=folder, ignore_patterns=list(LEFT_OUT))


def _files(model: str, revision: str) -> list[RemoteFile]:
    from huggingface_hub import HfApi
    from huggingface_hub.utils import filter_repo_objects

    found = HfApi().model_info(model, revision=revision, files_metadata=True).siblings or []
    files = [RemoteFile(one.rfilename, one.size or 0, one.lfs.sha256 if one.lfs else None) for one in found]
    return list(filter_repo_objects(files, ignore_patterns=list(LEFT_OUT), key=lambda file: file.path))


def main() -> None:
    parser = argparse.ArgumentParser(description="Bring a model's weights to a shared folder.")
    parser.add_argument("model")
    parser.add_argument("revision", help="commit of the hub's repository, 40 hex digits")
    parser.add_argument("--to", type=Path, required=True)
    arguments = parser.parse_args()
    if len(arguments.revision) != 40:
        raise BadSettings(f"revision '{arguments.revision}' is no commit: a branch would move")
    print(download(arguments.model, arguments.revision, arguments.to))


if __name__ == "__main__":
    main()
