"""Fields of what people write: models that refuse those they do not know, and name the nearest that they do.

Knows pydantic. Does not know which models there are.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Iterator
from types import UnionType
from typing import Annotated, Any, Self, Union, get_args, get_origin

from pydantic import BaseModel, ConfigDict, ModelWrapValidatorHandler, ValidationError, model_validator
from pydantic_core import InitErrorDetails, PydanticCustomError
from pydantic_core.core_schema import ErrorType

# Our types of errors, with the whole message as `text` in their context.
UNKNOWN_FIELD, UNKNOWN_VALUE = "unknown_field", "unknown_value"
_BUILT_IN = frozenset(get_args(ErrorType))
_CHOICE = re.compile(r"'((?:[^'\\]|\\.)*)'|(-?[\w.]+)(?=,| or |$)")


def nearest(name: object, known: Iterable[str]) -> str:
    """The name of `known` that somebody who wrote `name` may have meant; "" where none is near.

    Upper and lower case, hyphens and underscores are the same.
    """
    spellings = {_plain(one): one for one in sorted(known, reverse=True)}
    near = difflib.get_close_matches(_plain(name), spellings, n=1) if isinstance(name, str) else []
    return spellings[near[0]] if near else ""


def did_you_mean(name: object, known: Iterable[str]) -> str:
    """`; did you mean 'x'?`, to be put behind a message; "" where nothing is near."""
    near = nearest(name, known)
    return f"; did you mean '{near}'?" if near else ""


def choices(error: Any) -> list[str]:
    """What pydantic's error of a Literal or an Enum would have accepted, as text."""
    expected = str((error.get("ctx") or {}).get("expected", ""))
    return [text or number for text, number in _CHOICE.findall(expected)]


class Frozen(BaseModel):
    """A model whose errors name the nearest field or value, wherever they are shown: config files, options, HTTP."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @model_validator(mode="wrap")
    @classmethod
    def _name_the_nearest(cls, value: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        try:
            return handler(value)
        except ValidationError as error:
            details = [_hinted(cls, one) for one in error.errors(include_url=False)]
            raise ValidationError.from_exception_data(error.title, details) from None


def _hinted(model: type[BaseModel], error: Any) -> InitErrorDetails:
    """An error of `model` or of a model in it, which was here before."""
    kind: Any = error["type"]
    context = error.get("ctx") or {}
    if kind == "extra_forbidden":
        text = f"{error['msg']}{meant(error['loc'][-1], model)}"
        kind = PydanticCustomError(UNKNOWN_FIELD, "{text}", {"text": text})
    elif kind in ("literal_error", "enum"):
        known = choices(error)
        text = f"{error['msg']}{did_you_mean(error['input'], known)}"
        kind = PydanticCustomError(UNKNOWN_VALUE, "{text}", {"text": text, "known": known})
    elif kind in _BUILT_IN:
        return InitErrorDetails(type=kind, ctx=context, loc=error["loc"], input=error["input"])
    else:
        kind = PydanticCustomError(kind, "{text}", {"text": error["msg"], **context})
    return InitErrorDetails(type=kind, loc=error["loc"], input=error["input"])


def names(model: type[BaseModel]) -> list[str]:
    """Of the fields that a document may give, by their aliases where they have some."""
    return [field.alias or name for name, field in model.model_fields.items()]


def meant(name: Any, model: type[BaseModel]) -> str:
    """`; did you mean 'x'?` or `; it belongs in 'y'`, for a field that `model` does not have; "" where none is near."""
    homes = [
        outer
        for outer, field in model.model_fields.items()
        if any(name in names(inner) for inner in models_of(field.annotation))
    ]
    near, home = nearest(name, names(model)), " or ".join(f"'{outer}'" for outer in homes)
    if near and home:
        return f"; did you mean '{near}', or the one in {home}?"
    return f"; it belongs in {home}" if home else did_you_mean(name, names(model))


def models_of(annotation: Any) -> list[type[BaseModel]]:
    """The models that a value of this type may be, or hold in a list."""
    return [
        kind
        for member in members(annotation)
        for item in (get_args(member) if get_origin(member) in (list, tuple) else (member,))
        for kind in members(item)
        if isinstance(kind, type) and issubclass(kind, BaseModel)
    ]


def members(annotation: Any) -> Iterator[Any]:
    """Of a union; a type alone is its own only member."""
    origin = get_origin(annotation)
    if origin is Annotated:
        yield from members(get_args(annotation)[0])
    elif origin in (Union, UnionType):
        for member in get_args(annotation):
            yield from members(member)
    else:
        yield annotation


def _plain(name: str) -> str:
    return name.lower().replace("-", "_")
