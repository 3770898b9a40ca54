"""An identity bank: which people there are, as data.

A bank names attributes with their distributions, drawn independently or in cases of other attributes, and how a
person is described to the model. Banks come with the package (`banks/`), or from a user's YAML or JSON file:

    name: shoppers
    version: 1
    attributes:
      age: {kind: truncated_normal, mean: 40, std: 15, min: 18, max: 90}
      member: {kind: bernoulli, p: 0.3}
      basket:
        kind: conditional
        cases:
          - {when: {member: true, age: {below: 30}}, then: {kind: uniform, values: [large, medium]}}
          - {when: {member: true, age: {min: 30}}, then: {kind: constant, value: large}}
        otherwise: {kind: categorical, shares: {small: 0.7, medium: 0.3}}
    describe: "{age} years old, {member}, {basket} baskets"
    words: {member: {true: club member, false: no member}}

Attributes are drawn in the order in which they stand: it is part of what a seed means.
"""

from __future__ import annotations

import difflib
from functools import cached_property, lru_cache
from graphlib import CycleError, TopologicalSorter
from importlib import resources
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import Field, field_validator, model_validator

from serve_app.errors import BadSettings
from serve_app.fields import Frozen
from serve_app.workloads.ctr.people.columns import RESERVED
from serve_app.workloads.ctr.people.conditional import Conditional
from serve_app.workloads.ctr.people.describe import Description
from serve_app.workloads.ctr.people.distributions import (
    Bernoulli,
    Categorical,
    Constant,
    Subset,
    Support,
    TruncatedNormal,
    Uniform,
    Value,
    Values,
    as_text,
)
from serve_app.workloads.ctr.people.documents import parse_document, read_document, validated

Attribute = Annotated[
    Categorical | Uniform | Constant | Bernoulli | TruncatedNormal | Subset | Conditional, Field(discriminator="kind")
]


class Bank(Frozen):
    """`columns` is the order in which people are shown, if it is not that in which they are drawn. `source` says where
    the figures are from. Without `describe`, people are described as "age: 34, gender: Male, …".

    `sensitive` attributes (special categories of personal data, as in Article 9 of the GDPR) are drawn and in the
    results, but neither told to the model nor segments of a report.
    """

    name: str = Field(min_length=1)
    version: int = Field(ge=1)
    source: str = ""
    attributes: dict[str, Attribute] = Field(min_length=1)
    columns: tuple[str, ...] = ()
    sensitive: tuple[str, ...] = ()
    describe: str = ""
    words: dict[str, dict[str, str]] = Field(default_factory=dict)

    @field_validator("words", mode="before")
    @classmethod
    def _text_keys(cls, words: Any) -> Any:
        """In YAML, keys true, false and null are no text; in JSON they are."""
        if not isinstance(words, dict):
            return words
        return {
            name: {as_text(key): word for key, word in said.items()} if isinstance(said, dict) else said
            for name, said in words.items()
        }

    @model_validator(mode="after")
    def _coherent(self) -> Bank:
        for name in self.attributes:
            if not name or name in RESERVED:
                raise ValueError(
                    f"attributes: '{name}' is {'a column of the results' if name else 'no name'}: rename it"
                )
        self._check_parents()
        self._check_cases()
        if self.columns and sorted(self.columns) != sorted(self.attributes):
            raise ValueError("columns: must have every attribute once")
        self._check_sensitive()
        return self

    def _check_sensitive(self) -> None:
        told = self.description.names  # raises
        for name in self.sensitive:
            if name not in self.attributes:
                raise ValueError(f"sensitive: '{name}' is no attribute; these are: {', '.join(self.attributes)}")
            if name in told:
                raise ValueError(f"describe: tells '{{{name}}}', which is sensitive: take it out of one of the two")

    def _check_parents(self) -> None:
        for name, attribute in self.attributes.items():
            for parent in _parents(attribute):
                if parent not in self.attributes:
                    near = difflib.get_close_matches(parent, self.attributes, n=1)
                    raise ValueError(
                        f"attributes.{name}: depends on '{parent}', which is no attribute"
                        + (f"; '{near[0]}' is" if near else "")
                    )
        try:
            self.order  # noqa: B018  # raises
        except CycleError as error:
            raise ValueError(f"attributes: in a circle, {' depends on '.join(reversed(error.args[1]))}") from error

    def _check_cases(self) -> None:
        supports: dict[str, Support | None] = {}
        for name in self.order:
            attribute = self.attributes[name]
            if not isinstance(attribute, Conditional):
                supports[name] = attribute.support
                continue
            known = {parent: support for parent in attribute.parents if (support := supports[parent]) is not None}
            for parent in attribute.parents:
                if parent not in known:
                    raise ValueError(
                        f"attributes.{name}: nothing can depend on '{parent}', whose values are neither a list nor a "
                        "range of numbers"
                    )
            try:
                attribute.check(known)
            except ValueError as error:
                raise ValueError(f"attributes.{name}.{error}") from None
            supports[name] = attribute.support

    @cached_property
    def order(self) -> tuple[str, ...]:
        """The attributes' names, each after those that it depends on."""
        graph = {name: _parents(attribute) for name, attribute in self.attributes.items()}
        return tuple(TopologicalSorter(graph).static_order())

    @property
    def shown(self) -> tuple[str, ...]:
        """The attributes' names in the order of the results' columns."""
        return self.columns or tuple(self.attributes)

    @cached_property
    def description(self) -> Description:
        """What is said of a person."""
        return Description(self.describe, self.shown, self.words, untold=self.sensitive)

    @property
    def identity(self) -> str:
        """Name and version."""
        return f"{self.name}/v{self.version}"

    def draw(self, rng: np.random.Generator, size: int) -> dict[str, list[Value]]:
        """`size` people, as one list of values an attribute, in the order of `shown`."""
        blocks: dict[str, Any] = {name: attribute.draw(rng, size) for name, attribute in self.attributes.items()}
        people: dict[str, Values] = {}
        for name in self.order:
            attribute = self.attributes[name]
            drawn = blocks[name]
            people[name] = attribute.choose(drawn, people) if isinstance(attribute, Conditional) else drawn
        return {name: people[name].tolist() for name in self.shown}


def _parents(attribute: Any) -> tuple[str, ...]:
    return attribute.parents if isinstance(attribute, Conditional) else ()


PACKAGED = ("default", "rich")
Inline = dict[str, Any]


def load_bank(bank: str | Path | Inline | Bank) -> Bank:
    """A packaged bank by name, a user's by the path of its file, or one that is given as a document.

    Raises BadSettings naming the field that is wrong.
    """
    if isinstance(bank, Bank):
        return bank
    if isinstance(bank, dict):
        return validated(Bank, bank, "bank")
    if str(bank) in PACKAGED:
        return _packaged(str(bank))
    path = Path(bank)
    if path.suffix.lower() not in (".yaml", ".yml", ".json"):
        raise BadSettings(f"bank '{bank}' is unknown: use {', '.join(PACKAGED)}, or a .yaml or .json file of your own")
    return validated(Bank, read_document(path), f"bank {path}")


@lru_cache
def _packaged(name: str) -> Bank:
    text = (resources.files("serve_app.workloads.ctr.people") / "banks" / f"{name}.yaml").read_text(encoding="utf-8")
    return validated(Bank, parse_document(text), f"bank {name}")
