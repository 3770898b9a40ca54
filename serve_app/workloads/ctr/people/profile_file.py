"""People from a user's file: CSV with a header, JSON lines, or Parquet.

A row that makes no person becomes a profile with an error that names its line, never an exception and never nothing.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa

from serve_app.errors import BadSettings
from serve_app.workloads.ctr.people.bank import Bank
from serve_app.workloads.ctr.people.columns import RESERVED
from serve_app.workloads.ctr.people.describe import Description
from serve_app.workloads.ctr.people.profiles import Profile
from serve_app.workloads.ctr.people.records import read_records
from serve_app.workloads.ctr.people.values import number, plain_value, type_of


@dataclass(frozen=True)
class ProfileFile:
    """Where people are and how their columns are called.

    `columns` maps attributes to the file's columns; without it every column but those of ids and weights is an
    attribute. `describe` is a bank's template of the attributes.
    """

    path: Path
    columns: Mapping[str, str] = field(default_factory=dict)
    id_column: str = ""
    weight_column: str = ""
    describe: str = ""

    def digest(self) -> str:
        """SHA-256 of the file's bytes, 32 hex digits. Raises BadSettings."""
        try:
            with open(self.path, "rb") as file:
                return hashlib.file_digest(file, "sha256").hexdigest()[:32]
        except OSError as error:
            raise BadSettings(f"--profiles {self.path}: {error.strerror or error}") from error


def read_profiles(file: ProfileFile, bank: Bank) -> list[Profile]:
    """One profile a row, in order.

    Attributes that the bank has too have its type (an age is a whole number), and may be empty only if the bank's may;
    others are taken as they are, and may not be empty. The bank's description is used where the file has all that it
    names and no own template.

    Raises BadSettings for a file that cannot be read, a column that is not there, or a file without a good row.
    """
    try:
        profiles = list(_profiles(file, bank))
    except (OSError, pa.ArrowException) as error:
        raise BadSettings(f"--profiles {file.path}: {getattr(error, 'strerror', '') or error}") from error
    if not profiles:
        raise BadSettings(f"--profiles {file.path} has no rows")
    if all(profile.error for profile in profiles):
        raise BadSettings(f"--profiles {file.path}: no row makes a person; {profiles[0].error}")
    return profiles


def _profiles(file: ProfileFile, bank: Bank) -> Iterator[Profile]:
    names, records = read_records(file.path)
    reader = _Reader(file, bank, names)
    seen: dict[str, str] = {}
    for i, (place, record) in enumerate(records, 1):
        unreadable = f"row-{i}-unreadable"
        if isinstance(record, str):
            yield Profile(unreadable, {}, "", error=f"{place}: {record}")
            continue
        try:
            custom_id = reader.id(record) if file.id_column else f"row-{i}"
            if (before := seen.setdefault(custom_id, place)) != place:
                raise ValueError(f"{file.id_column}: '{custom_id}' is {before}'s too")
        except ValueError as error:
            yield Profile(unreadable, {}, "", error=f"{place}: {error}")
            continue
        try:
            yield reader.profile(custom_id, record)
        except ValueError as error:
            yield Profile(custom_id, {}, "", error=f"{place}: {error}")


class _Reader:
    """From a record's columns to a profile. Raises BadSettings for columns that the file has not."""

    def __init__(self, file: ProfileFile, bank: Bank, columns: tuple[str, ...]) -> None:
        own = {file.id_column, file.weight_column}
        self._file = file
        self._columns = dict(file.columns) or {column: column for column in columns if column not in own}
        wanted = [*self._columns.values(), *filter(None, own)]
        if missing := [column for column in wanted if column not in columns]:
            raise BadSettings(f"{file.path} has no column '{missing[0]}'; it has {', '.join(columns)}")
        if clash := [name for name in self._columns if not name or name in RESERVED]:
            raise BadSettings(f"--map: '{clash[0]}' is a column of the results: give it another name, name={clash[0]}")
        self._types = {name: type_of(bank, name) for name in self._columns}
        self._describe = _description(file, bank, tuple(self._columns)).of

    def id(self, record: Mapping[str, Any]) -> str:
        value = plain_value(record.get(self._file.id_column))
        if value is None or value == "":
            raise ValueError(f"{self._file.id_column}: is empty")
        return str(value)

    def profile(self, custom_id: str, record: Mapping[str, Any]) -> Profile:
        """Raises ValueError naming the column that is wrong."""
        attributes = {}
        for name, column in self._columns.items():
            try:
                attributes[name] = self._types[name](plain_value(record.get(column)))
            except ValueError as error:
                raise ValueError(f"{column}: {error}") from None
        return Profile(custom_id, attributes, self._describe(attributes), self._weight(record))

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


def _description(file: ProfileFile, bank: Bank, names: tuple[str, ...]) -> Description:
    words = {name: said for name, said in bank.words.items() if name in names}
    try:
        if not file.describe and set(bank.attributes) <= set(names):
            return Description(bank.describe, names, words)
        return Description(file.describe, names, words)
    except ValueError as error:
        raise BadSettings(f"--describe: {error}") from None
