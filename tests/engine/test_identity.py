import json
from pathlib import Path
from typing import Any

import pytest

from serve_app.dispatch.render import TokenRenderer
from serve_app.engine.identity import engine_identity, prompt_settings
from serve_app.models.default import prepare
from serve_app.schema import PromptSettings, Row, unpack_tokens

TEMPLATE = (
    "{% for message in messages %}<{{ message.role }}>{{ message.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{{ mood | default('calm') }}:{% endif %}"
)


@pytest.fixture
def options(tmp_path: Path) -> dict[str, Any]:
    for folder in ("model", "adapter", "template"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "config.json").write_text("{}")
    (tmp_path / "template" / "chat.jinja").write_text("other" + TEMPLATE)
    return {"model": str(tmp_path / "model")}


def test_identity_is_of_all_that_changes_answers_and_of_nothing_else(options: dict[str, Any], tmp_path: Path) -> None:
    plain = engine_identity(options, dtype="bfloat16")
    adapter = {"name": "a", "path": str(tmp_path / "adapter")}
    variants: list[dict[str, Any]] = [
        {"quantization": "fp8"},
        {"lora_modules": [adapter]},
        {"lora_modules": [f"b={adapter['path']}"]},
        {"chat_template": TEMPLATE},
        {"chat_template": str(tmp_path / "template" / "chat.jinja")},
        {"default_chat_template_kwargs": {"enable_thinking": False}},
        {"tokenizer": str(tmp_path / "adapter")},
        {"load_format": "dummy"},
    ]
    found = [engine_identity({**options, **one}, dtype="bfloat16") for one in variants]
    assert len({plain, engine_identity(options, dtype="float32"), *found}) == 2 + len(variants)
    same = {"tensor_parallel_size": 2, "max_num_seqs": 8, "served_model_name": ["x"], "kv_cache_memory_bytes": 1 << 30}
    assert engine_identity({**options, **same}, dtype="bfloat16") == plain
    assert engine_identity({**options, "lora_modules": [json.dumps(adapter)]}, dtype="bfloat16") == found[1]
    assert len(plain) == 32
    for folder, other in (("model", plain), ("adapter", found[1])):
        (tmp_path / folder / "config.json").write_text('{"new": 1}')
        assert engine_identity({**options, **(variants[1] if folder == "adapter" else {})}, dtype="bfloat16") != other


def test_a_model_without_files_counts_by_name_and_revision() -> None:
    names = [{"model": "nobody/has-this", "revision": revision} for revision in (None, "a", "b")]
    assert len({engine_identity(one, dtype="bfloat16") for one in names}) == 3


def test_prompt_settings_are_read_of_the_options(tmp_path: Path) -> None:
    assert prompt_settings({"model": "m"}) == PromptSettings()
    file = tmp_path / "chat.jinja"
    file.write_text(TEMPLATE)
    for given in (str(file), TEMPLATE):
        assert prompt_settings({"model": "m", "chat_template": given}).chat_template == TEMPLATE
    given_all = {"default_chat_template_kwargs": {"mood": "gay"}, "tokenizer_mode": "slow", "trust_remote_code": True}
    assert prompt_settings({"model": "m", **given_all, "tokenizer_revision": "r"}) == PromptSettings(
        "", {"mood": "gay"}, "r", slow_tokenizer=True, trust_remote_code=True
    )


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"chat_template": TEMPLATE},
        {"chat_template": TEMPLATE, "default_chat_template_kwargs": {"mood": "cheerful"}},
        {"default_chat_template_kwargs": {"add_generation_prompt": False, "unknown": 1}},
    ],
)
def test_a_population_gets_the_tokens_that_vllm_makes_of_a_chat(options: dict[str, Any]) -> None:
    pytest.importorskip("vllm")
    from transformers import AutoTokenizer
    from vllm.config import ModelConfig
    from vllm.renderers.chat_utils import load_chat_template
    from vllm.renderers.hf import safe_apply_chat_template

    chat: Any = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Who are you?"}]
    source = str(prepare())
    online: Any = safe_apply_chat_template(
        ModelConfig(model=source),
        AutoTokenizer.from_pretrained(source),
        chat,
        chat_template=load_chat_template(options.get("chat_template")),
        tokenize=True,
        **{**options.get("default_chat_template_kwargs", {}), "add_generation_prompt": True},
    )
    (prompt,) = TokenRenderer(source, prompt_settings(options)).prompts([Row("a", tuple(chat))])
    assert isinstance(prompt, bytes)
    assert unpack_tokens(prompt) == online
