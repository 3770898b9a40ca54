"""Groups of people by an attribute: values, number ranges, list members."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from serve_app.errors import BadSettings
from serve_app.workloads.ctr.people.columns import RESERVED
from serve_app.workloads.ctr.statistics.estimate import Floats, column

Mask = npt.NDArray[np.bool_]

# Result columns that do not describe people.
NOT_ATTRIBUTES = RESERVED | {"p_click_calibrated", "platform"}
# Advertising platforms' age groups (Google Ads, Meta Ads, TikTok Ads).
CUTS: Mapping[str, Sequence[float]] = {"age": (25, 35, 45, 55, 65)}
# More groups are names, not segments; fewer numbers are categories.
MAX_LEVELS = 40
MAX_CATEGORIES = 7
NONE = "(none)"


@dataclass(frozen=True, slots=True)
class Level:
    """One group of an attribute and its members, shape (rows,). `None` is a group too."""

    attribute: str
    name: str
    mask: Mask


def attributes_of(table: pa.Table) -> list[str]:
    return [name for name in table.column_names if name not in NOT_ATTRIBUTES]


def levels_of(
    table: pa.Table, attribute: str, *, cuts: Sequence[float] | None = None, known: Sequence[str] = ()
) -> list[Level]:
    """The attribute's groups in natural order; numbers are cut at `cuts`, else CUTS, else into fifths.

    `known` values without rows form empty groups. List members form overlapping groups. Empty for more than MAX_LEVELS
    groups, such as names or free text. Raises BadSettings without the column.
    """
    if attribute not in table.column_names:
        raise BadSettings(f"no attribute '{attribute}': the results have {', '.join(attributes_of(table))}")
    values = table[attribute]
    if isinstance(values.type, (pa.ListType, pa.LargeListType)):
        return _members(attribute, values.to_pylist(), known)
    number = pa.types.is_integer(values.type) or pa.types.is_floating(values.type)
    if number and (cuts or attribute in CUTS or pc.count_distinct(values).as_py() > MAX_CATEGORIES):
        return list(_bins(attribute, column(table, attribute), cuts or CUTS.get(attribute)))
    return _values(attribute, values.to_pylist(), known)


def _values(attribute: str, values: list[object], known: Sequence[str]) -> list[Level]:
    names = np.array([_name(value) for value in values], dtype=object)
    return _named(attribute, [*known, *_sorted(values)], lambda name: names == name)


def _members(attribute: str, values: list[list[object] | None], known: Sequence[str]) -> list[Level]:
    people = [{_name(member) for member in value or [None]} for value in values]
    found = _sorted([member for value in values for member in value or [None]])
    return _named(attribute, [*known, *found], lambda name: np.array([name in person for person in people], dtype=bool))


def _named(attribute: str, names: list[str], mask: Callable[[str], Mask]) -> list[Level]:
    distinct = list(dict.fromkeys(names))
    if len(distinct) > MAX_LEVELS:
        return []
    return [Level(attribute, name, mask(name)) for name in distinct]


def _sorted(values: Sequence[object]) -> list[str]:
    # "20-40k" sorts by its first number, names by alphabet, none last.
    names = {_name(value) for value in values}
    return sorted(names, key=lambda name: (name == NONE, _leading_number(name), name))


def _leading_number(name: str) -> float:
    digits = name.split("-")[0].rstrip("k+").replace(",", "")
    return float(digits) if digits.isdigit() else float("inf")


def _name(value: object) -> str:
    if value is None:
        return NONE
    return {True: "yes", False: "no"}[value] if isinstance(value, bool) else str(value)


def _bins(attribute: str, values: Floats, cuts: Sequence[float] | None) -> Iterator[Level]:
    known = values[~np.isnan(values)]
    whole = bool(np.all(known == np.round(known)))
    if cuts is None:
        cuts = np.unique([float(f"{cut:.2g}") for cut in np.quantile(known, (0.2, 0.4, 0.6, 0.8))]).tolist()
    edges = [-np.inf, *sorted(cuts), np.inf]
    for low, high in pairwise(edges):
        yield Level(attribute, _range(low, high, known, whole), (values >= low) & (values < high))
    if len(known) < len(values):
        yield Level(attribute, NONE, np.isnan(values))


def _range(low: float, high: float, known: Floats, whole: bool) -> str:
    if not whole:
        return f"< {high:g}" if low == -np.inf else f"≥ {low:g}" if high == np.inf else f"{low:g} to {high:g}"
    if high == np.inf:
        return f"{low:g}+"
    start = low if low > -np.inf else known.min(initial=high - 1)
    return f"{start:g}–{high - 1:g}" if start < high - 1 else f"{high - 1:g}"
