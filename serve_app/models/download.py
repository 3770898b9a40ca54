"""Downloads a model's weights to a shared folder before GPUs start.

    python -m serve_app.models.download meta-llama/Llama-3.1-8B-Instruct REVISION --to /data/models

REVISION is a commit, not a branch, so all replicas load the same weights. An interrupted download resumes. The folder
TO/MODEL/REVISION appears atomically: files are checked by size and hash in a temporary folder, then renamed.
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

# Duplicates of the safetensors in PyTorch's own format, with pickle.
LEFT_OUT = ("original/*", "*.pth", "*.bin", "consolidated*")
CHUNK_BYTES = 16 << 20


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """A file's entry on the hub; small files have no hash."""

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
    """The folder with the weights, fetched if missing. Tests replace `fetch` and `files`.

    Raises ModelNotFound that names files which differ from the hub's; a retry fetches those again.
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
    shutil.rmtree(partial / ".cache", ignore_errors=True)  # the hub's state of partial downloads
    os.rename(partial, target)
    return target


def differences(folder: Path, files: list[RemoteFile]) -> Iterator[str]:
    """Paths that are missing, or whose size or hash differs."""
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
