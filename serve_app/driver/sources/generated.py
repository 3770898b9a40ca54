"""Rows that an installed generator makes."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Sized
from importlib.metadata import entry_points
from itertools import islice

import pydantic

from serve_app.driver.sources.template import Input
from serve_app.errors import BadSettings
from serve_app.fields import did_you_mean
from serve_app.schema import Row
from serve_app.spec import Generator

GENERATORS = "serve_app.generators"


class Generated:
    """Rows made by an entry point of the group `serve_app.generators`: a callable that gives an iterable of `Row`s.

    It gets the job's arguments by name, checked against its annotations. With a parameter `start` it begins there
    itself; otherwise earlier rows are made and skipped. If the iterable has a length, rows are not made for counting.
    """

    def __init__(self, asked: Generator) -> None:
        installed = {point.name: point for point in entry_points(group=GENERATORS)}
        if asked.name not in installed:
            known = ", ".join(installed) or "none"
            near = did_you_mean(asked.name, installed)
            raise BadSettings(f"'{asked.name}' is not installed here{near}; these are: {known}", field="generator.name")
        try:
            make = installed[asked.name].load()
            self._takes_start = "start" in inspect.signature(make).parameters
            self._make: Callable[..., Iterable[Row]] = pydantic.validate_call(make)
        except Exception as error:  # whatever its import raises
            raise BadSettings(f"'{asked.name}' cannot be loaded: {error}", field="generator.name") from error
        if self._takes_start and "start" in asked.arguments:
            raise BadSettings("'start' is not for jobs to give", field="generator.arguments")
        self._arguments = asked.arguments
        try:
            next(self.rows(), None)  # have the generator refuse now
        except pydantic.ValidationError as error:
            problems = (f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
            raise BadSettings("; ".join(problems), field="generator.arguments") from error
        except BadSettings as error:
            raise BadSettings(str(error), field="generator.arguments") from error

    def rows(self, start: int = 0, stop: int | None = None) -> Iterator[Row]:
        if self._takes_start:
            made = self._make(**self._arguments, start=start)
            return islice(made, None if stop is None else max(0, stop - start))
        return islice(self._make(**self._arguments), start, stop)

    def inputs(self) -> Iterator[Input]:
        return (Input({}, row) for row in self.rows())

    def ids(self) -> Iterator[str]:
        return (row.custom_id for row in self.rows())

    @property
    def size(self) -> int | None:
        """Number of rows, where the generator tells it without making them."""
        made = self._make(**self._arguments)
        return len(made) if isinstance(made, Sized) else None

    def count(self) -> int:
        size = self.size
        return sum(1 for _ in self._make(**self._arguments)) if size is None else size
