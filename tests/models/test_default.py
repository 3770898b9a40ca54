"""The default model: padding leaves the function unchanged."""

import pytest


def test_padding_adds_zero_heads_and_keeps_the_rest() -> None:
    import torch

    from serve_app.models.default import pad_heads

    generator = torch.Generator().manual_seed(0)
    layer = "model.layers.0.self_attn."
    weights = {
        f"{layer}q_proj.weight": torch.randn(6, 5, generator=generator),  # 3 heads of 2
        f"{layer}k_proj.weight": torch.randn(2, 5, generator=generator),
        f"{layer}o_proj.weight": torch.randn(5, 6, generator=generator),
        "model.norm.weight": torch.randn(5, generator=generator),
    }
    padded = pad_heads(weights, head_dim=2, heads=4, kv_heads=2)
    assert padded[f"{layer}q_proj.weight"].shape == (8, 5)
    assert padded[f"{layer}k_proj.weight"].shape == (4, 5)
    assert padded[f"{layer}o_proj.weight"].shape == (5, 8)
    assert torch.equal(padded[f"{layer}q_proj.weight"][:6], weights[f"{layer}q_proj.weight"])
    assert not padded[f"{layer}q_proj.weight"][6:].any()
    assert not padded[f"{layer}o_proj.weight"][:, 6:].any()
    assert padded["model.norm.weight"] is weights["model.norm.weight"]


@pytest.mark.engine
def test_the_padded_model_is_the_same_function_as_the_unpadded_one() -> None:
    import torch
    from transformers import AutoModelForCausalLM

    from serve_app.models.default import prepare

    ids = torch.randint(3, 49000, (2, 48), generator=torch.Generator().manual_seed(0))
    logits = []
    for padded in (False, True):
        # In float32, where only the order of summation differs.
        model = AutoModelForCausalLM.from_pretrained(prepare(padded=padded), dtype=torch.float32).eval()
        assert model.config.num_attention_heads == (12 if padded else 9)
        with torch.inference_mode():
            logits.append(model(ids).logits)
    difference = (logits[0] - logits[1]).abs().max().item()
    print(f"largest difference of a logit, padded against unpadded, float32: {difference:.2e}")
    assert difference < 1e-3
