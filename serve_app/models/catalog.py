"""Resolves model names in the settings to weights."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from serve_app.errors import BadSettings, ModelNotFound
from serve_app.models import default

# Bytes of one weight.
TYPE_BYTES = {"float32": 4, "float": 4, "bfloat16": 2, "float16": 2, "half": 2}
# config.json's names of the longest sequence (vLLM 0.32); the smallest counts.
LENGTHS = (
    "max_position_embeddings",
    "n_positions",
    "max_seq_len",
    "seq_length",
    "max_target_positions",
    "max_sequence_length",
    "max_seq_length",
    "seq_len",
)
# Rotary embeddings whose factor those lengths include.
ALREADY_SCALED = ("su", "longrope", "llama3", "yarn", "deepseek_yarn", "deepseek_llama_scaling")
# Families whose layers all cache all tokens.
PLAIN_ATTENTION = ("llama", "qwen2", "qwen3", "mistral")
HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")


def resolve_model(name: str) -> Path | str:
    """The folder of a prepared model, the folder `name`, or a hub name unchanged, for vLLM to fetch.

    Raises ModelNotFound when `name` is neither, or its folder has no config.json.
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
        return  # vLLM checks hub names
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


def check_length(model: Path | str, options: Mapping[str, Any]) -> None:
    """Raise BadSettings if `max_model_len` exceeds the limit in a local config.json."""
    length, longest = options.get("max_model_len"), longest_sequence(read_config(model))
    allowed = (
        os.environ.get("VLLM_ALLOW_LONG_MAX_MODEL_LEN", "0") != "0"
        or options.get("hf_overrides")
        or options.get("hf_config_path")
    )
    if length and longest and length > longest and not allowed:
        raise BadSettings(
            f"{length} is beyond the model's {longest} positions: use at most {longest}", field="engine.max_model_len"
        )


def longest_sequence(config: Mapping[str, Any]) -> int | None:
    """The longest sequence in tokens; None if config.json has none.

    Source: `_get_and_verify_max_len` of vLLM 0.32.
    """
    text = config.get("text_config") or config
    if isinstance(own := text.get("model_max_length"), int):
        return own
    known = [text[key] for key in LENGTHS if isinstance(text.get(key), int)]
    rope = text.get("rope_parameters") or text.get("rope_scaling") or {}
    if not known or any(isinstance(value, dict) for value in rope.values()):  # per layer type
        return None
    scaled = rope.get("rope_type", rope.get("type")) in ALREADY_SCALED or "gemma3" in str(text.get("model_type"))
    return int(min(known) * (1 if scaled else rope.get("factor") or 1))


def check_kv_cache(model: Path | str, options: Mapping[str, Any], dtype: str) -> None:
    """Raise BadSettings if `kv_cache_memory_bytes` holds no whole sequence in `dtype`; vLLM would refuse it.

    Only for models with full attention in every layer; others need less.
    """
    config = read_config(model)
    length = options.get("max_model_len") or longest_sequence(config)
    room = options.get("kv_cache_memory_bytes")
    plain = config.get("model_type") in PLAIN_ATTENTION and not config.get("sliding_window")
    if not length or length < 0 or not room or not plain or options.get("kv_cache_dtype") not in (None, "auto"):
        return
    ranks, heads = int(options.get("tensor_parallel_size") or 1), config["num_attention_heads"]
    size = config.get("head_dim") or config["hidden_size"] // heads
    values = 2 * config["num_hidden_layers"] * max(1, config.get("num_key_value_heads", heads) // ranks) * size
    per_token = values * TYPE_BYTES.get(dtype, 2)
    if room < length * per_token:
        raise BadSettings(
            f"{room} bytes hold {room // per_token} tokens in {dtype}, fewer than one sequence of max_model_len "
            f"{length}: give at least {length * per_token}, or a smaller max_model_len",
            field="engine.kv_cache_memory_bytes",
        )


def read_config(model: Path | str, *, fetch: bool = False) -> dict[str, Any]:
    """config.json of a model's folder or a cached hub name; empty otherwise.

    With `fetch` the hub is asked; only a starting engine should wait for it.
    """
    file = Path(model) / "config.json"
    if not file.is_file() and not Path(model).is_absolute():
        from huggingface_hub import hf_hub_download

        with suppress(Exception):  # vLLM fetches it again and reports errors
            file = Path(hf_hub_download(str(model), "config.json", local_files_only=not fetch))
    try:
        config = json.loads(file.read_text())
    except (OSError, ValueError):
        return {}
    return config if isinstance(config, dict) else {}


def stored_type(config: dict[str, Any]) -> str:
    """The weights' data type; bfloat16 if config.json has none."""
    text_config = config.get("text_config") or {}
    return str(config.get("dtype") or config.get("torch_dtype") or text_config.get("dtype") or "bfloat16")


def weight_bytes(model: Path | str, dtype: str | None = None) -> int:
    """Bytes of the weights in folder `model` in `dtype` (None: as stored).

    0 for a hub name, whose size is unknown.
    """
    stored = sum(file.stat().st_size for file in Path(model).glob("*.safetensors"))
    if dtype is None or not stored:
        return stored
    return stored * TYPE_BYTES.get(dtype, 2) // TYPE_BYTES.get(stored_type(read_config(model)), 2)
