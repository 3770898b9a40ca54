"""From a row's columns to what is asked: templates with `{column}` fields, ids, expected lengths.

Does not know files (see `files.py`), chat templates or tokens (see `dispatch/render.py`).
"""

from __future__ import annotations

import difflib
import string
from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from typing import Any, NamedTuple

import msgspec

from serve_app.errors import BadSettings
from serve_app.schema import Row
from serve_app.spec import JobSpec

OWN_COLUMNS = ("messages", "prompt")
# `JobSpec.id_column` where the job says nothing.
DEFAULT_IDS = "custom_id"
# Rows whose ids must differ for a column `id` to be taken for them.
IDS_SEEN = 1000
_Chat = tuple[dict[str, str], ...]
# Types that `%s` writes as `as_text` does.
_PLAIN = frozenset((str, int, float, bool))


class Input(NamedTuple):
    """A row as its data has it, and what was made of it."""

    columns: Mapping[str, Any]
    row: Row


class Template:
    """Text with `{column}` fields; `{{` and `}}` are braces. `field` names it in errors.

    Attributes, indices, conversions and format specs raise BadSettings, as templates come from clients. `columns` are
    the fields' names, in order, with repetitions.
    """

    def __init__(self, text: str, field: str) -> None:
        try:
            parts = list(string.Formatter().parse(text))
        except ValueError as error:
            raise BadSettings(f"{error}; write {{{{ or }}}} for a brace", field=field) from error
        names: list[str] = []
        # For printf-style formatting, the fastest way to join constants and values.
        pieces: list[str] = []
        for literal, name, spec, conversion in parts:
            pieces.append(literal.replace("%", "%%"))
            if name is None:
                continue
            if not name or conversion or spec or "." in name or "[" in name:
                raise BadSettings(
                    f"'{{{_as_written(name, spec, conversion)}}}' is no plain {{column}} field; "
                    "write {{ and }} for braces",
                    field=field,
                )
            pieces.append("%s")
            names.append(name)
        self.field = field
        self.columns = tuple(names)
        self._format = "".join(pieces)

    def render(self, values: Mapping[str, Any]) -> str:
        """The text with the columns' values by `as_text`. Raises KeyError for a missing column."""
        return self._format % tuple([v if type(v := values[name]) in _PLAIN else as_text(v) for name in self.columns])


def _as_written(name: str, spec: str | None, conversion: str | None) -> str:
    return name + (f"!{conversion}" if conversion else "") + (f":{spec}" if spec else "")


def as_text(value: Any) -> str:
    """A column's value as text: None is empty, numbers and times as by `str`, lists and mappings as JSON.

    Raises ValueError for bytes that are not UTF-8 (some Parquet writers store text as bytes).
    """
    if value is None:
        return ""
    if isinstance(value, bytes):
        return value.decode()
    if isinstance(value, list | dict):
        return msgspec.json.encode(value).decode()
    return str(value)


class RowMaker:
    """Makes the rows of one job, by its template or from each row's own `messages` or `prompt`.

    Raises BadSettings for a malformed template.
    """

    def __init__(self, spec: JobSpec) -> None:
        self._id_column = spec.id_column
        self._length_column = spec.length_column
        self._prompt = None if spec.prompt is None else Template(spec.prompt, "prompt")
        turns = [(m.role, Template(m.content, f"messages[{i}].content")) for i, m in enumerate(spec.messages)]
        self._templates = [self._prompt] if self._prompt else [content for _, content in turns]
        # Constant turns are shared by all rows.
        self._turns = [
            (role, content, None if content.columns else {"role": role, "content": content.render({})})
            for role, content in turns
        ]

    @property
    def id_column(self) -> str:
        """The column that has the ids, if the data has it."""
        return self._id_column

    def find_ids(self, columns: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> None:
        """Take ids from a column `id` where no `custom_id` is, if each of the first `rows` has one of its own there.

        Only by the first IDS_SEEN rows, so that all who read the data find the same without reading it all.
        """
        if self._id_column != DEFAULT_IDS or DEFAULT_IDS in columns:
            return
        found = [column for column in columns if column.casefold() == "id"]
        if len(found) != 1:
            return
        ids = ["" if (given := row.get(found[0])) is None else str(given) for row in islice(rows, IDS_SEEN)]
        if ids and all(ids) and len(set(ids)) == len(ids):
            self._id_column = found[0]

    def check(self, columns: Sequence[str], name: str) -> list[str]:
        """Which of the data's `columns` are needed, in order; `name` is the data's, for errors.

        Raises BadSettings for columns that the job names and the data lacks.
        """
        if DEFAULT_IDS != self._id_column not in columns:
            raise BadSettings(_no_column(self._id_column, columns, name), field="id_column")
        if self._length_column and self._length_column not in columns:
            raise BadSettings(_no_column(self._length_column, columns, name), field="length_column")
        for template in self._templates:
            for column in template.columns:
                if column not in columns:
                    raise BadSettings(_no_column(column, columns, name), field=template.field)
        if not self._templates and not set(OWN_COLUMNS) & set(columns):
            raise BadSettings(
                f"{name} has no column 'messages' or 'prompt': give a template of its columns, "
                f"{_some(columns)}, in prompt or messages",
                field="prompt",
            )
        needed = {self._id_column, self._length_column, *(c for template in self._templates for c in template.columns)}
        return [c for c in columns if c in needed or (c in OWN_COLUMNS and not self._templates)]

    def row(self, number: int, values: Mapping[str, Any]) -> Row:
        """Row `number` (from 0) of the data, with an `error` if its columns do not make one."""
        custom_id = self.custom_id(number, values)
        length = _length(values.get(self._length_column)) if self._length_column else 0
        try:
            if self._prompt is not None:
                return Row(custom_id, (), self._prompt.render(values), length)
            if self._turns:
                turns = [
                    {"role": role, "content": content.render(values)} if constant is None else constant
                    for role, content, constant in self._turns
                ]
                return Row(custom_id, tuple(turns), None, length)
            return _own(custom_id, values, length)
        except KeyError as missing:
            return Row(custom_id, error=f"no column {missing}; the row has {_some(values) or 'none'}")
        except ValueError as error:  # not UTF-8, or malformed messages
            return Row(custom_id, error=str(error))

    def custom_id(self, number: int, values: Mapping[str, Any]) -> str:
        """The row's id from the data, or row-1, row-2, … by position."""
        given = values.get(self._id_column)
        if type(given) is str and given:
            return given
        try:
            return as_text(given) or f"row-{number + 1}"
        except ValueError:
            return unreadable_id(number)


def unreadable_id(number: int) -> str:
    """The id of row `number` (from 0), whose own cannot be read.

    `row-7-unreadable`, as a plain `row-7` could be a good row's id.
    """
    return f"row-{number + 1}-unreadable"


def unreadable(number: int, error: str) -> Row:
    """Row `number` (from 0), which cannot be read."""
    return Row(unreadable_id(number), error=error)


def _own(custom_id: str, values: Mapping[str, Any], length: int) -> Row:
    messages, prompt = values.get("messages"), values.get("prompt")
    if messages is None and prompt is None:
        # The sender may say why it has none.
        said = as_text(values.get("error")) or f"no messages and no prompt; the row has {_some(values) or 'no column'}"
        return Row(custom_id, error=said)
    if messages is None:
        return Row(custom_id, (), as_text(prompt), length)
    try:
        chat = _chat_of(messages)
    except ValueError as error:
        return Row(custom_id, error=f"messages: {error}")
    return Row(custom_id, chat, None, length)


def _chat_of(messages: Any) -> _Chat:
    """Messages from JSON, JSON as text (CSV), or Parquet, whose structs have None for missing fields."""
    if isinstance(messages, str | bytes):
        messages = msgspec.json.decode(messages)
    if isinstance(messages, list):
        messages = [{k: v for k, v in m.items() if v is not None} if isinstance(m, dict) else m for m in messages]
    chat = msgspec.convert(messages, _Chat)
    if not chat or any("role" not in message or "content" not in message for message in chat):
        raise ValueError('give at least one, each with "role" and "content"')
    return chat


def _length(value: Any) -> int:
    """Tokens, as a hint: 0 (unknown) unless a positive number."""
    try:
        return max(0, int(float(value or 0)))
    except (TypeError, ValueError, OverflowError):
        return 0


def _no_column(column: str, columns: Sequence[str], name: str) -> str:
    near = difflib.get_close_matches(column, columns, n=3, cutoff=0.5) or columns
    return f"{name} has no column '{column}'; nearest: {_some(near) or 'none'}"


def _some(names: Iterable[str]) -> str:
    listed = [f"'{name}'" for name in names]
    return ", ".join(listed[:10]) + (", …" if len(listed) > 10 else "")
