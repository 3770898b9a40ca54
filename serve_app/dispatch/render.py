"""Turns rows into engine input in the driver, so that replicas do no text work."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, Protocol

import msgspec

from serve_app.errors import BadSettings
from serve_app.schema import EngineInfo, PromptSettings, Row, pack_tokens

DEFAULT_PROMPTS = PromptSettings()


class NotRendered(msgspec.Struct, frozen=True):
    error: str


class Renderer(Protocol):
    """Makes prompts (`schema.Chunk.prompts`) from rows."""

    def prompts(self, rows: Sequence[Row]) -> list[bytes | NotRendered]:
        """One prompt per row, or why there is none."""

    def label_ids(self, labels: Sequence[str]) -> tuple[int, ...]:
        """Label ids of a chunk. Raises BadSettings for labels that cannot be told apart."""


def make_renderer(engine: EngineInfo, *, external: bool = False, requests: bool = False) -> Renderer:
    if requests:
        return RequestRenderer()
    if external:
        return MessageRenderer()
    if engine.simulated and not engine.tokenizer:
        return CharacterRenderer()
    with _LOADING:
        return _token_renderer(engine.tokenizer, msgspec.json.encode(engine.prompts))


# Two threads break the library's lazy import.
_LOADING = threading.Lock()


@lru_cache(maxsize=4)
def _token_renderer(source: str, settings: bytes) -> TokenRenderer:
    return TokenRenderer(source, msgspec.json.decode(settings, type=PromptSettings))  # a second; the first import ten


class TokenRenderer:
    """Token ids as the engine's HTTP application would make them: by its tokenizer, chat template and settings.

    `source` is a folder or hub name. Thread-safe.
    """

    def __init__(self, source: str, settings: PromptSettings = DEFAULT_PROMPTS) -> None:
        from transformers import AutoTokenizer

        self._tokenizer: Any = AutoTokenizer.from_pretrained(
            source,
            revision=settings.tokenizer_revision or None,
            use_fast=not settings.slow_tokenizer,
            trust_remote_code=settings.trust_remote_code,
        )
        self._chat_settings = {
            **settings.chat_template_kwargs,
            **({"chat_template": settings.chat_template} if settings.chat_template else {}),
            "tokenize": False,
            "add_generation_prompt": True,
        }
        self._lock = threading.Lock()  # a tokenizer changes its state in each call

    def prompts(self, rows: Sequence[Row]) -> list[bytes | NotRendered]:
        """Text gets the tokenizer's special tokens, a chat its template's."""
        prompts: list[bytes | NotRendered] = [b""] * len(rows)
        chats: list[tuple[int, str]] = []
        texts: list[tuple[int, str]] = []
        for i, row in enumerate(rows):
            if row.prompt is not None:
                texts.append((i, row.prompt))
                continue
            try:
                chats.append((i, self._chat(row)))
            except Exception as error:
                prompts[i] = NotRendered(f"chat template: {error}")
        for some, special in ((chats, False), (texts, True)):
            if some:
                with self._lock:
                    encoded = self._tokenizer([text for _, text in some], add_special_tokens=special)["input_ids"]
                for (i, _), ids in zip(some, encoded, strict=True):
                    prompts[i] = pack_tokens(ids) if ids else NotRendered("the prompt is empty")
        return prompts

    def _chat(self, row: Row) -> str:
        text: str = self._tokenizer.apply_chat_template(list(row.messages), **self._chat_settings)
        return text

    def label_ids(self, labels: Sequence[str]) -> tuple[int, ...]:
        """The token of each label. Raises BadSettings unless each is exactly one token, all different."""
        with self._lock:
            ids = [self._tokenizer(label, add_special_tokens=False)["input_ids"] for label in labels]
        for label, tokens in zip(labels, ids, strict=True):
            if len(tokens) != 1:
                raise BadSettings(
                    f"{label!r} is {len(tokens)} tokens for this model; a label must be one", field="labels"
                )
        if len({tokens[0] for tokens in ids}) < len(labels):
            raise BadSettings(f"{list(labels)} are not all different tokens", field="labels")
        return tuple(tokens[0] for tokens in ids)


class RequestRenderer:
    def prompts(self, rows: Sequence[Row]) -> list[bytes | NotRendered]:
        return [(row.prompt or "").encode() for row in rows]

    def label_ids(self, labels: Sequence[str]) -> tuple[int, ...]:
        return ()


class MessageRenderer:
    """Messages or text as JSON, for an external provider."""

    def prompts(self, rows: Sequence[Row]) -> list[bytes | NotRendered]:
        return [msgspec.json.encode(row.messages if row.prompt is None else row.prompt) for row in rows]

    def label_ids(self, labels: Sequence[str]) -> tuple[int, ...]:
        if len(set(labels)) < len(labels):
            raise BadSettings(f"{list(labels)} are not all different", field="labels")
        return tuple(range(len(labels)))


class CharacterRenderer:
    """One token per character (its code point), for simulated engines without a tokenizer."""

    def prompts(self, rows: Sequence[Row]) -> list[bytes | NotRendered]:
        # Equals `pack_tokens` of the code points.
        return [(_text(row) or "?").encode("utf-32-be", "replace") for row in rows]

    def label_ids(self, labels: Sequence[str]) -> tuple[int, ...]:
        """A label's first non-space character."""
        first = [label.lstrip()[:1] for label in labels]
        if "" in first or len(set(first)) < len(labels):
            raise BadSettings(f"{list(labels)} do not all begin with a character of their own", field="labels")
        return tuple(map(ord, first))


def _text(row: Row) -> str:
    return row.prompt if row.prompt is not None else "\n".join(message["content"] for message in row.messages)
