"""Converts file values to attribute values. Raises ValueError if impossible."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date
from decimal import Decimal
from typing import Any

from serve_app.workloads.ctr.people.bank import Bank
from serve_app.workloads.ctr.people.conditional import Conditional
from serve_app.workloads.ctr.people.distributions import Bernoulli, Interval, Levels, Value

# English, German and French spreadsheets.
TRUE = frozenset({"true", "yes", "y", "1", "wahr", "ja", "vrai", "oui"})
FALSE = frozenset({"false", "no", "n", "0", "falsch", "nein", "faux", "non"})
# From pandas (pandas._libs.parsers.STR_NA_VALUES), and dashes.
MISSING = frozenset(
    ["", "-", "–", "—", "NA", "N/A", "n/a", "<NA>", "#N/A", "#NA", "#N/A N/A", "NaN", "nan", "-NaN", "-nan", "NULL",
     "null", "None", "1.#IND", "-1.#IND", "1.#QNAN", "-1.#QNAN", "#NULL!"]
)  # fmt: skip


@dataclass(frozen=True)
class Kind:
    """Converts an attribute's file values; `convert` raises ValueError. `may_be_empty`: no value has a meaning, such as
    no illness."""

    convert: Callable[[Value], Value]
    may_be_empty: bool = False


def kind_of(bank: Bank, name: str) -> Kind:
    """The kind of the bank's attribute, if any."""
    attribute = bank.attributes.get(name)
    branches = attribute.branches if isinstance(attribute, Conditional) else (attribute,)
    support = attribute.support if attribute else None
    convert = _as_it_is
    if isinstance(support, Interval):
        convert = whole_number if support.integer else number
    elif all(isinstance(branch, Bernoulli) for branch in branches):
        convert = flag
    return Kind(convert, may_be_empty=isinstance(support, Levels) and None in support.values)


def is_missing(value: Any) -> bool:
    if isinstance(value, str):
        return value.strip() in MISSING
    return value is None or (isinstance(value, float | Decimal) and math.isnan(value))


def _as_it_is(value: Value) -> Value:
    return value


def plain_value(value: Any) -> Value:
    """Raises ValueError unless a single value."""
    match value:
        case str():
            return value.strip()
        case None | bool() | int():
            return value
        case float() | Decimal():
            if not math.isfinite(value):
                raise ValueError(f"{value} is no number")
            return float(value)
        case date():
            return value.isoformat()
        case list() if all(isinstance(item, str) for item in value):
            return ", ".join(value)
    raise ValueError(f"a {type(value).__name__} is not one value")


def number(value: Value) -> float:
    try:
        found = float(value) if not isinstance(value, bool) and value is not None else math.nan
    except ValueError:
        found = math.nan
    if not math.isfinite(found):
        raise ValueError(f"{value!r} is not a number")
    return found


def whole_number(value: Value) -> int:
    if (found := number(value)) % 1:
        raise ValueError(f"{value!r} is not a whole number")
    return int(found)


def flag(value: Value) -> bool:
    text = str(value).lower()
    if text not in TRUE | FALSE:
        raise ValueError(f"{value!r} is neither true nor false (yes and no, 1 and 0)")
    return text in TRUE
