"""What a model is, beyond the name that it is served under: a hash of its files."""

from __future__ import annotations

import hashlib
from pathlib import Path

import msgspec

# Files that say what a model computes; a README or a picture does not.
SUFFIXES = frozenset({".json", ".txt", ".model", ".tiktoken", ".jinja", ".py", ".safetensors", ".bin", ".pt", ".gguf"})
# Of a larger file, the weights, only samples are read: its beginning, its end and blocks at equal distances.
WHOLE_BYTES = 32 << 20
EDGE_BYTES = 1 << 20
BLOCKS, BLOCK_BYTES = 64, 64 << 10


class ModelIdentity(msgspec.Struct, frozen=True):
    """All that decides what a model answers. `files` are hashes by `hash_folder`, of the model and of each adapter.

    `options` are the engine's settings that change answers, as JSON values. The number of ranks is not among them, nor
    are cache and batch sizes: they change rounding only.
    """

    files: dict[str, str]
    dtype: str
    options: dict[str, object]

    def hex(self) -> str:
        """SHA-256, 32 hex digits."""
        encoded = msgspec.json.encode(self, order="sorted", enc_hook=str)
        return hashlib.sha256(encoded).hexdigest()[:32]


def hash_folder(folder: Path) -> str:
    """SHA-256, hex, over names, sizes and contents of a model's files, in the order of their names.

    Configuration, tokenizer, chat template and code are read whole. Of a file of more than 32 MiB, that is of weights,
    the size, the first MiB (in safetensors the header: names, types, shapes and places of all tensors), the last and
    64 blocks of 64 KiB in between are read: 6 MiB of any size, which the page cache usually has, as the engine has
    just read it. So training, quantising, merging and converting change it. A change that leaves size and header and
    touches no sample, as of a few single weights, does not; nor does a file's time, place or owner. Weights cut into
    other files count as others.

    Folders inside are left out, and so are hidden files. Raises OSError.
    """
    found = hashlib.sha256()
    for file in sorted(folder.iterdir()):
        if file.suffix in SUFFIXES and not file.name.startswith(".") and file.is_file():
            size = file.stat().st_size
            found.update(f"{file.name}\n{size}\n".encode())
            found.update(_whole(file) if size <= WHOLE_BYTES else _samples(file, size))
    return found.hexdigest()


def _whole(file: Path) -> bytes:
    return hashlib.sha256(file.read_bytes()).digest()


def _samples(file: Path, size: int) -> bytes:
    found = hashlib.sha256()
    with file.open("rb", buffering=0) as opened:
        found.update(opened.read(EDGE_BYTES))
        for number in range(1, BLOCKS + 1):
            opened.seek(size * number // (BLOCKS + 1))
            found.update(opened.read(BLOCK_BYTES))
        opened.seek(size - EDGE_BYTES)
        found.update(opened.read(EDGE_BYTES))
    return found.digest()


def folder_of(model: str, revision: str | None = None) -> Path | None:
    """The folder of a model, also of a hub name that this machine has fetched; None if there is none."""
    if (path := Path(model).expanduser()).is_dir():
        return path
    from huggingface_hub import try_to_load_from_cache

    for name in ("config.json", "adapter_config.json"):
        try:
            found = try_to_load_from_cache(model, name, revision=revision)
        except ValueError:  # no hub name: an address, say
            return None
        if isinstance(found, str):
            return Path(found).parent
    return None
