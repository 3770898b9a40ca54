"""What a model's config.json limits."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from serve_app.errors import BadSettings
from serve_app.models.catalog import check_kv_cache, check_length, longest_sequence

LLAMA = {"model_type": "llama", "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
         "head_dim": 8, "max_position_embeddings": 1024}  # fmt: skip


@pytest.fixture
def model(tmp_path: Path) -> Path:
    (tmp_path / "config.json").write_text(json.dumps(LLAMA))
    return tmp_path


@pytest.mark.parametrize(
    ("config", "longest"),
    [
        ({}, None),
        ({"max_position_embeddings": 1024}, 1024),
        ({"max_position_embeddings": 1024, "n_positions": 512}, 512),
        ({"text_config": {"max_position_embeddings": 2048}}, 2048),
        ({"max_position_embeddings": 1024, "rope_scaling": {"type": "linear", "factor": 4.0}}, 4096),
        ({"max_position_embeddings": 1024, "rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, 1024),
        ({"max_position_embeddings": 1024, "rope_parameters": {"rope_type": "default"}}, 1024),
        ({"max_position_embeddings": 1024, "rope_parameters": {"full_attention": {"factor": 8.0}}}, None),
        ({"max_position_embeddings": 1024, "model_max_length": 4096}, 4096),
    ],
)
def test_the_longest_sequence_is_what_vllm_derives(config: dict[str, Any], longest: int | None) -> None:
    assert longest_sequence(config) == longest


def test_a_sequence_beyond_it_is_refused_unless_something_else_lengthens_it(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for length in (None, -1, 1024):
        check_length(model, {"max_model_len": length})
    with pytest.raises(BadSettings, match=r"engine\.max_model_len: 1025 is beyond the model's 1024 positions"):
        check_length(model, {"max_model_len": 1025})
    check_length(model, {"max_model_len": 1025, "hf_overrides": {"max_position_embeddings": 2048}})
    monkeypatch.setenv("VLLM_ALLOW_LONG_MAX_MODEL_LEN", "1")
    check_length(model, {"max_model_len": 1025})


def test_a_cache_that_holds_no_whole_sequence_is_refused(model: Path) -> None:
    # 2 (keys, values) x 2 layers x 2 heads x 8 x 2 bytes = 128 bytes a token; at TP=2 half of the heads.
    whole = 1024 * 128
    check_kv_cache(model, {"kv_cache_memory_bytes": whole}, "bfloat16")
    check_kv_cache(model, {"kv_cache_memory_bytes": whole // 2, "tensor_parallel_size": 2}, "bfloat16")
    check_kv_cache(model, {"kv_cache_memory_bytes": 128, "max_model_len": -1}, "bfloat16")
    check_kv_cache(model, {"kv_cache_memory_bytes": 128, "max_model_len": 1}, "bfloat16")
    with pytest.raises(BadSettings, match=f"hold 512 tokens in float32, .* give at least {2 * whole}"):
        check_kv_cache(model, {"kv_cache_memory_bytes": whole}, "float32")
