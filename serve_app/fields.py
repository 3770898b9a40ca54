"""Models that reject unknown fields and suggest the nearest known one.

Knows pydantic. Does not know the models.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Iterator
from types import UnionType
from typing import Annotated, Any, ClassVar, Self, Union, get_args, get_origin

from pydantic import BaseModel, ConfigDict, ModelWrapValidatorHandler, ValidationError, model_validator
from pydantic_core import InitErrorDetails, PydanticCustomError
from pydantic_core.core_schema import ErrorType

# The context's `text` is the whole message.
UNKNOWN_FIELD, UNKNOWN_VALUE = "unknown_field", "unknown_value"
_BUILT_IN = frozenset(get_args(ErrorType))
_CHOICE = re.compile(r"'((?:[^'\\]|\\.)*)'|(-?[\w.]+)(?=,| or |$)")


def nearest(name: object, known: Iterable[str]) -> str:
    """The nearest of `known`, or "". Ignores case, hyphens and underscores."""
    spellings = {_plain(one): one for one in sorted(known, reverse=True)}
    near = difflib.get_close_matches(_plain(name), spellings, n=1) if isinstance(name, str) else []
    return spellings[near[0]] if near else ""


def did_you_mean(name: object, known: Iterable[str]) -> str:
    """`; did you mean 'x'?`, to append to a message; "" without a near name."""
    near = nearest(name, known)
    return f"; did you mean '{near}'?" if near else ""


def choices(error: Any) -> list[str]:
    """The values that pydantic's error of a Literal or an Enum lists."""
    expected = str((error.get("ctx") or {}).get("expected", ""))
    return [text or number for text, number in _CHOICE.findall(expected)]


class Frozen(BaseModel):
    """A model whose errors name the nearest field or value, in config files, options and HTTP alike."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
    # Fields of earlier versions, and what to do instead.
    former: ClassVar[dict[str, str]] = {}

    @model_validator(mode="wrap")
    @classmethod
    def _name_the_nearest(cls, value: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        try:
            return handler(value)
        except ValidationError as error:
            details = [_hinted(cls, one) for one in error.errors(include_url=False)]
            raise ValidationError.from_exception_data(error.title, details) from None


def _hinted(model: type[BaseModel], error: Any) -> InitErrorDetails:
    """The error, from `model` or a nested one, with a hint."""
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
    """Field names or aliases."""
    return [field.alias or name for name, field in model.model_fields.items()]


def meant(name: Any, model: type[BaseModel]) -> str:
    """`; did you mean 'x'?` or `; it belongs in 'y'` for a field that `model` lacks; "" without a near name.

    For one that it had once, what to do instead.
    """
    if issubclass(model, Frozen) and name in model.former:
        return f" any more; {model.former[name]}"
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
    """The models that a type allows, directly or in a list."""
    return [
        kind
        for member in members(annotation)
        for item in (get_args(member) if get_origin(member) in (list, tuple) else (member,))
        for kind in members(item)
        if isinstance(kind, type) and issubclass(kind, BaseModel)
    ]


def members(annotation: Any) -> Iterator[Any]:
    """Members of a union, or the type itself."""
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
