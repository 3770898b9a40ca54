"""An engine that is nearly free: a Llama of one layer with the default model's tokenizer and random weights.

What it computes costs next to nothing, so that what is left is the price of the front end: what a fast GPU would see.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from serve_app.models.default import prepare

HIDDEN, HEADS = 64, 2
# Given to all sides, as their defaults differ.
ENGINE: dict[str, Any] = {
    "dtype": "float32",
    "tensor_parallel_size": 1,
    "max_model_len": 4096,
    "kv_cache_memory_bytes": 256 << 20,
    "max_num_seqs": 256,
    "max_num_batched_tokens": 4096,
    "block_size": 32,
    "enforce_eager": True,
}


def write_tiny_model(folder: Path) -> Path:
    """Write it; returns the folder."""
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    source = prepare()
    tokenizer = AutoTokenizer.from_pretrained(source)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=HIDDEN,
        intermediate_size=2 * HIDDEN,
        num_hidden_layers=1,
        num_attention_heads=HEADS,
        num_key_value_heads=HEADS,
        head_dim=HIDDEN // HEADS,
        max_position_embeddings=8192,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    torch.manual_seed(0)
    LlamaForCausalLM(config).to(torch.float32).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    for name in ("generation_config.json", "chat_template.jinja"):
        if (source / name).exists():
            shutil.copy(source / name, folder / name)
    return folder
