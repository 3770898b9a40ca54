"""From rows to token ids, once, in the driver: the replicas' event loops do no text work for populations."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from serve_app.errors import BadSettings
from serve_app.schema import Row


class Renderer:
    """The model's own tokenizer and chat template. `source` is a folder or hub name, as EngineInfo.tokenizer says."""

    def __init__(self, source: str) -> None:
        from transformers import AutoTokenizer

        self._tokenizer: Any = AutoTokenizer.from_pretrained(source)

    def prompts(self, rows: Sequence[Row]) -> list[tuple[int, ...] | str]:
        """Token ids of each row's chat, with the template's opening of the answer; or why the template refuses it."""
        texts = [self._text(row) for row in rows]
        good = [text for text in texts if isinstance(text, str)]
        # The template writes the special tokens itself.
        ids = iter(self._tokenizer(good, add_special_tokens=False)["input_ids"] if good else [])
        return [tuple(next(ids)) if isinstance(text, str) else f"chat template: {text}" for text in texts]

    def _text(self, row: Row) -> str | Exception:
        try:
            text: str = self._tokenizer.apply_chat_template(
                list(row.messages), tokenize=False, add_generation_prompt=True
            )
            return text
        except Exception as error:  # whatever the model's template raises: one row's matter, not the job's
            return error

    def label_ids(self, labels: Sequence[str]) -> tuple[int, ...]:
        """The one token of each label.

        Raises BadSettings for a label that is not exactly one token, or not different from the others.
        """
        ids = [self._tokenizer(label, add_special_tokens=False)["input_ids"] for label in labels]
        for label, tokens in zip(labels, ids, strict=True):
            if len(tokens) != 1:
                raise BadSettings(f"labels: {label!r} is {len(tokens)} tokens for this model; a label must be one")
        if len({tokens[0] for tokens in ids}) < len(labels):
            raise BadSettings(f"labels: {list(labels)} are not all different tokens")
        return tuple(tokens[0] for tokens in ids)
