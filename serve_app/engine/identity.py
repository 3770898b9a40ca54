"""What a vLLM engine is to whoever keeps its answers: the hash of its model, and how it makes prompts of chats."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from serve_app.engine.options import is_template, read_adapter
from serve_app.models.identity import ModelIdentity, folder_of, hash_folder
from serve_app.schema import PromptSettings

logger = logging.getLogger(__name__)

# vLLM's options that change answers beside model, data type and adapters.
ANSWERING = (
    "quantization",
    "kv_cache_dtype",
    "hf_overrides",
    "load_format",
    "generation_config",
    "override_generation_config",
    "logprobs_mode",
    "tokenizer_mode",
    "chat_template_content_format",
)


def engine_identity(options: Mapping[str, Any], *, dtype: str) -> str:
    """32 hex digits over the files of model, tokenizer and adapters, the data type in use and options that change
    answers: see `models.identity` for what is read of the files, and why that is cheap.

    A model whose files are not on this machine (streamed from a bucket) counts by its name and revision.
    """
    model, revision = str(options["model"]), options.get("revision")
    files = {"model": _files(model, revision)}
    if tokenizer := options.get("tokenizer"):
        files["tokenizer"] = _files(str(tokenizer), options.get("tokenizer_revision"))
    for adapter in map(read_adapter, options.get("lora_modules") or ()):
        files[f"adapter {adapter['name']}"] = _files(str(adapter["path"]), None)
    answering: dict[str, object] = {name: options[name] for name in ANSWERING if options.get(name) is not None}
    prompts = prompt_settings(options)
    answering |= {"chat_template": prompts.chat_template, "chat_template_kwargs": prompts.chat_template_kwargs}
    return ModelIdentity(files, dtype, answering).hex()


def _files(name: str, revision: str | None) -> str:
    try:
        if (folder := folder_of(name, revision)) is not None:
            return hash_folder(folder)
    except OSError as error:
        logger.warning("cannot read the files of %s, which then counts by its name: %s", name, error)
    return f"{name}@{revision or ''}"


def prompt_settings(options: Mapping[str, Any]) -> PromptSettings:
    """What of the options decides which tokens a chat or a text is."""
    kwargs = dict(options.get("default_chat_template_kwargs") or {})
    if options.get("cohere_format"):  # as vLLM's resolve_default_chat_template_kwargs
        kwargs.setdefault("cohere_format", options["cohere_format"])
    return PromptSettings(
        chat_template=_template(options.get("chat_template")),
        chat_template_kwargs=kwargs,
        tokenizer_revision=options.get("tokenizer_revision") or options.get("revision") or "",
        slow_tokenizer=options.get("tokenizer_mode") == "slow",
        trust_remote_code=bool(options.get("trust_remote_code")),
    )


def _template(given: str | None) -> str:
    """The template's text: the option is a file or the text itself."""
    if not given or is_template(given):
        return given or ""
    return Path(given).expanduser().read_text(encoding="utf-8")
