"""People from a user's file: CSV and similar, workbooks, JSON lines, or Parquet. An invalid row becomes a profile whose
error names the line.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa

from serve_app.errors import BadSettings
from serve_app.workloads.ctr.people.bank import Bank
from serve_app.workloads.ctr.people.columns import RESERVED
from serve_app.workloads.ctr.people.describe import Description
from serve_app.workloads.ctr.people.plausible import Impossible
from serve_app.workloads.ctr.people.profiles import Profile
from serve_app.workloads.ctr.people.records import Records, read_records
from serve_app.workloads.ctr.people.summary import PeopleSummary
from serve_app.workloads.ctr.people.values import is_missing, kind_of, number, plain_value

ALL = "all"


@dataclass(frozen=True)
class ProfileFile:
    """A file of people and its columns.

    `columns` maps attributes to columns; by default every column but ids and weights is an attribute, under the bank's
    name in any spelling ("Annual Salary"). `describe` is a bank's template. `require` names required attributes; ALL
    means all. By default, a column `id` with unique values gives the ids, without `id_column`.
    """

    path: Path
    columns: Mapping[str, str] = field(default_factory=dict)
    id_column: str = ""
    weight_column: str = ""
    describe: str = ""
    require: tuple[str, ...] = ()

    def digest(self) -> str:
        """SHA-256 of the file, 32 hex digits. Raises BadSettings."""
        try:
            with open(self.path, "rb") as file:
                return hashlib.file_digest(file, "sha256").hexdigest()[:32]
        except OSError as error:
            raise BadSettings(f"--profiles {self.path}: {error.strerror or error}") from error


@dataclass(frozen=True)
class People:
    """One profile per row, in order, and how they were read."""

    profiles: list[Profile]
    summary: PeopleSummary


def read_people(file: ProfileFile, bank: Bank) -> People:
    """One profile per row, in order.

    Attributes of the bank have its type (age: a whole number); others stay as read. Missing values (`values.MISSING`)
    give no attribute and no text. The bank's description is used if the file has all its attributes and no template.

    Raises BadSettings for an unreadable file, missing columns, no valid rows, or no column known to the bank, `columns`
    or `describe`.
    """
    try:
        records = read_records(file.path)
    except (OSError, pa.ArrowException) as error:
        raise BadSettings(f"--profiles {file.path}: {getattr(error, 'strerror', '') or error}") from error
    reader = _Reader(file, bank, records)
    profiles = list(reader.profiles())
    if not profiles:
        raise BadSettings(f"--profiles {file.path} has no rows")
    problems = [profile.error for profile in profiles if profile.error]
    if len(problems) == len(profiles):
        raise BadSettings(f"--profiles {file.path}: no row makes a person; {problems[0]}")
    reader.check_known()
    return People(profiles, reader.summary(len(profiles), problems))


class _Reader:
    """Turns records into profiles. Raises BadSettings for missing columns."""

    def __init__(self, file: ProfileFile, bank: Bank, records: Records) -> None:
        self._file, self._bank = file, bank
        self._notes = list(records.notes)
        self._id_column = file.id_column
        own = {file.id_column, file.weight_column, *file.columns.values()}
        unasked = next((name for name in records.columns if name.casefold() == "id" and name not in own), "")
        if unasked and not file.id_column:
            self._use_ids(unasked, records)
        own |= {unasked} if not file.id_column else set()
        self._columns = dict(file.columns) or _attributes([c for c in records.columns if c not in own], bank)
        own = {self._id_column, file.weight_column}
        wanted = [*self._columns.values(), *filter(None, own)]
        if missing := [column for column in wanted if column not in records.columns]:
            raise BadSettings(f"{file.path} has no column '{missing[0]}'; it has {', '.join(records.columns)}")
        if clash := [name for name in self._columns if not name or name in RESERVED]:
            raise BadSettings(f"--map: '{clash[0]}' is a column of the results: give it another name, name={clash[0]}")
        self._required = self._columns.keys() if ALL in file.require else set(file.require)
        if unknown := sorted(self._required - self._columns.keys()):
            raise BadSettings(f"--require '{unknown[0]}' is no attribute; these are: {', '.join(self._columns)}")
        self._kinds = {name: kind_of(bank, name) for name in self._columns}
        self._describe = _description(file, bank, tuple(self._columns)).of
        self._missing: Counter[str] = Counter()
        self._impossible = {name: Impossible(name) for name in self._columns}
        self._records = records.with_plain_numbers([column for column in wanted if column != self._id_column])

    def _use_ids(self, column: str, records: Records) -> None:
        ids = [row.get(column) for _, row in records.rows if isinstance(row, dict)]
        if any(map(is_missing, ids)) or len(set(map(str, ids))) < len(ids):
            self._notes.append(f"column '{column}' is left out: not every row has an id of its own")
        else:
            self._id_column = column

    def profiles(self) -> Iterator[Profile]:
        seen: dict[str, str] = {}
        for i, (place, record) in enumerate(self._records.rows, 1):
            unreadable = f"row-{i}-unreadable"
            if isinstance(record, str):
                yield Profile(unreadable, {}, "", error=f"{place}: {record}")
                continue
            try:
                custom_id = self._id(record) if self._id_column else f"row-{i}"
                if (before := seen.setdefault(custom_id, place)) != place:
                    raise ValueError(f"{self._id_column}: '{custom_id}' is {before}'s too")
            except ValueError as error:
                yield Profile(unreadable, {}, "", error=f"{place}: {error}")
                continue
            try:
                yield self._profile(custom_id, record, place)
            except ValueError as error:
                yield Profile(custom_id, {}, "", error=f"{place}: {error}")

    def _id(self, record: Mapping[str, Any]) -> str:
        value = plain_value(record.get(self._id_column))
        if value is None or value == "":
            raise ValueError(f"{self._id_column}: is empty")
        return str(value)

    def _profile(self, custom_id: str, record: Mapping[str, Any], place: str) -> Profile:
        """Raises ValueError naming the wrong column."""
        attributes, missing, told = {}, [], False
        for name, column in self._columns.items():
            value, kind = record.get(column), self._kinds[name]
            try:
                if not is_missing(value):
                    attributes[name] = kind.convert(plain_value(value))
                    told = True
                elif kind.may_be_empty and value in (None, ""):
                    attributes[name] = None
                elif name in self._required:
                    raise ValueError("is empty")
                else:
                    missing.append(name)
            except ValueError as error:
                raise ValueError(f"{column}: {error}") from None
        if not told:
            raise ValueError("no column has a value")
        profile = Profile(custom_id, attributes, self._describe(attributes), self._weight(record))
        self._missing.update(missing)
        for name, value in attributes.items():
            self._impossible[name].note(value, place)
        return profile

    def _weight(self, record: Mapping[str, Any]) -> float:
        if not (column := self._file.weight_column):
            return 1.0
        try:
            weight = float(number(plain_value(record.get(column))))
        except ValueError as error:
            raise ValueError(f"{column}: {error}") from None
        if weight <= 0:
            raise ValueError(f"{column}: a weight of {weight:g} is not above 0")
        return weight

    def check_known(self) -> None:
        """Raise BadSettings if no column has a meaning here."""
        if self._file.columns or self._file.describe or self._columns.keys() & self._bank.attributes.keys():
            return
        columns, attributes = list(self._columns.values()), list(self._bank.attributes)
        raise BadSettings(
            f"--profiles {self._file.path}, read as {self._records.read_as}: no column is known "
            f"({', '.join(columns)}); the bank '{self._bank.name}' has {', '.join(attributes)}: name yours, as in "
            f"--map {attributes[0]}='{columns[0]}', or describe people by them, as in --describe '{{{columns[0]}}}'"
        )

    def summary(self, rows: int, problems: list[str]) -> PeopleSummary:
        """Summary of the read profiles."""
        impossible = [one.said for one in self._impossible.values() if one.said]
        return PeopleSummary(
            self._records.read_as,
            rows,
            rows - len(problems),
            tuple(self._columns.values()),
            dict(self._missing),
            (*impossible, *self._notes),
            problems[0] if problems else "",
        )


def _attributes(columns: list[str], bank: Bank) -> dict[str, str]:
    """Columns under their own or the bank's name."""
    names = {_plain(name): name for name in bank.attributes if name not in columns}
    found: dict[str, str] = {}
    for column in columns:
        name = names.pop(_plain(column), column) if column not in bank.attributes else column
        found[name] = column
    return found


def _plain(name: str) -> str:
    return re.sub(r"[\W_]+", "_", name.casefold()).strip("_")


def _description(file: ProfileFile, bank: Bank, names: tuple[str, ...]) -> Description:
    words = {name: said for name, said in bank.words.items() if name in names}
    try:
        if not file.describe and set(bank.attributes) <= set(names):
            return Description(bank.describe, names, words)
        return Description(file.describe, names, words)
    except ValueError as error:
        raise BadSettings(f"--describe: {error}") from None
