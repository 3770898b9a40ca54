"""From the name of a model in the settings to where its weights are."""

from __future__ import annotations

import json
import re
from contextlib import suppress
from pathlib import Path
from typing import Any

from serve_app.errors import BadSettings, ModelNotFound
from serve_app.models import default

# Of one weight, by vLLM's and PyTorch's names.
TYPE_BYTES = {"float32": 4, "float": 4, "bfloat16": 2, "float16": 2, "half": 2}
HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")


def resolve_model(name: str) -> Path | str:
    """The folder of a prepared model, the folder that `name` is, or a hub name as it is (vLLM fetches it).

    Raises ModelNotFound when `name` is neither, or is a folder without a config.json.
    """
    if name == default.NAME:
        return default.prepare()
    path = Path(name).expanduser()
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise ModelNotFound(f"{path} has no config.json, so it holds no model", field="engine.model")
        return path
    if name.startswith(("/", "./", "../", "~")) or not HUB_NAME.fullmatch(name):
        raise ModelNotFound(
            f"'{name}' is neither a folder, nor the prepared model '{default.NAME}', "
            "nor a hub name of the form 'owner/name'",
            field="engine.model",
        )
    return name


def check_heads(model: Path | str, ranks: int) -> None:
    """Raise BadSettings unless `ranks` divides the attention heads of the model in folder `model`."""
    config = Path(model) / "config.json"
    if not config.is_file():
        return  # a hub name: vLLM fetches and checks it
    try:
        heads = json.loads(config.read_text()).get("num_attention_heads")
    except ValueError as error:
        raise ModelNotFound(f"{config} is not JSON: {error}", field="engine.model") from error
    if isinstance(heads, int) and heads % ranks:
        possible = [n for n in range(1, heads + 1) if heads % n == 0]
        raise BadSettings(
            f"engine.tensor_parallel_size {ranks} does not divide the model's {heads} attention heads: "
            f"use one of {possible}"
        )


def read_config(model: Path | str, *, fetch: bool = False) -> dict[str, Any]:
    """config.json of a model's folder, or of a hub name, if this machine has it; empty otherwise.

    With `fetch` the hub is asked, as an engine that starts will do anyhow; a check of a config file should not wait.
    """
    file = Path(model) / "config.json"
    if not file.is_file() and not Path(model).is_absolute():
        from huggingface_hub import hf_hub_download

        with suppress(Exception):  # vLLM fetches it as well, and says what is wrong
            file = Path(hf_hub_download(str(model), "config.json", local_files_only=not fetch))
    try:
        config = json.loads(file.read_text())
    except (OSError, ValueError):
        return {}
    return config if isinstance(config, dict) else {}


def stored_type(config: dict[str, Any]) -> str:
    """The data type of the weights by a model's config.json; bfloat16 where it does not say."""
    text_config = config.get("text_config") or {}
    return str(config.get("dtype") or config.get("torch_dtype") or text_config.get("dtype") or "bfloat16")


def weight_bytes(model: Path | str, dtype: str | None = None) -> int:
    """Bytes of the weights in folder `model` once they are in `dtype` (None: as stored).

    0 for a hub name, whose size is not known before it is fetched.
    """
    stored = sum(file.stat().st_size for file in Path(model).glob("*.safetensors"))
    if dtype is None or not stored:
        return stored
    return stored * TYPE_BYTES.get(dtype, 2) // TYPE_BYTES.get(stored_type(read_config(model)), 2)
