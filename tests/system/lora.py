"""A LoRA adapter for the default model: random, so that what it answers differs from what the model does."""

import json
from pathlib import Path

import torch
from safetensors.torch import save_file

from serve_app.models.default import prepare

RANK = 4


def write_adapter(folder: Path, seed: int = 0) -> Path:
    """Adapt every layer's gate projection; the folder."""
    model = json.loads((prepare() / "config.json").read_text())
    hidden, inner = model["hidden_size"], model["intermediate_size"]
    generator = torch.Generator().manual_seed(seed)
    weights = {}
    for layer in range(model["num_hidden_layers"]):
        prefix = f"base_model.model.model.layers.{layer}.mlp.gate_proj"
        weights[f"{prefix}.lora_A.weight"] = torch.randn(RANK, hidden, generator=generator) / hidden**0.5
        weights[f"{prefix}.lora_B.weight"] = torch.randn(inner, RANK, generator=generator) / RANK**0.5
    folder.mkdir(parents=True, exist_ok=True)
    save_file(weights, folder / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": RANK, "lora_alpha": RANK, "bias": "none"}
    config |= {"target_modules": ["gate_proj"], "base_model_name_or_path": str(prepare())}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder
