"""Testbeds: a task's template, label words, consistency rule and row reader. Rows have no gold label; only
`evaluation.Gold` reads it.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Container, Iterator, Sequence
from dataclasses import dataclass
from decimal import Decimal
from importlib.resources import files
from pathlib import Path

import msgspec

from serve_app.errors import BadSettings
from serve_app.tables.table import DELIMITED, WORKBOOKS, read_table
from serve_app.workloads.icm.examples.consistency import Kind, Relation, relate
from serve_app.workloads.icm.examples.dataset import Dataset, Example, LabelWords

BUNDLED = Path(str(files("serve_app.workloads.icm") / "data"))


class Row(msgspec.Struct, frozen=True):
    """A row of a file. Published names are accepted: uid, choice, consistency_id, but not consistency_key, which the
    published code derives from the gold label.

    Rows of one `group` constrain each other by `key`, their claim; by default the testbed computes it if it can.
    """

    id: str | int | None = None
    uid: str | int | None = None
    text: str = ""
    question: str = ""
    claim: str = ""
    choice: str = ""
    choice_2: str = ""
    group: str | int | None = None
    consistency_id: str | int | None = None
    key: str = ""

    @property
    def said(self) -> str:
        """The claim."""
        return self.claim or self.choice

    @property
    def given_group(self) -> str:
        """From the file."""
        return str(next((given for given in (self.group, self.consistency_id) if given is not None), ""))


@dataclass(frozen=True, slots=True)
class Testbed:
    """`needs` are the template's columns. `group` and `key` compute missing values; in one group different keys are
    `different`, equal ones equivalent."""

    name: str
    template: str
    needs: tuple[str, ...]
    words: LabelWords
    instruction: str
    different: Kind = "contradiction"
    group: Callable[[Row], str] = lambda row: row.question
    key: Callable[[Row], str] = lambda row: ""

    __test__ = False  # not a pytest class

    def example(self, row: Row, name: str) -> Example:
        """Raises BadSettings for a missing needed column."""
        values = {"text": row.text, "question": row.question, "said": row.said}
        values |= {"choice": row.choice, "choice_2": row.choice_2}
        for column in self.needs:
            if not values[column].strip():
                shown = "claim (or choice)" if column == "said" else column
                raise BadSettings(f"column '{shown}' is missing or empty; testbed {self.name} needs it")
        text = self.template.format_map({column: " ".join(value.split()) for column, value in values.items()})
        return Example(name, text, row.given_group or self.group(row))


TRUTH = LabelWords(" False", " True")
CLAIM = "Question: {question}\nClaim: {said}\nI think this claim is"


def final_answer(row: Row) -> str:
    """The claim's last number, without separators and trailing zeros, else ""."""
    numbers = re.findall(r"-?\d[\d,]*(?:\.\d+)?", row.said or row.text)
    return f"{Decimal(numbers[-1].replace(',', '')).normalize():f}" if numbers else ""


def _same_claim(row: Row) -> str:
    """The text itself, so only repetitions are equal; other claims must not contradict."""
    return ""


def _pair(row: Row) -> str:
    return "\n".join([row.question, *sorted((row.choice, row.choice_2))])


TESTBEDS = {
    testbed.name: testbed
    for testbed in (
        Testbed(
            "truthfulqa", CLAIM, ("question", "said"), TRUTH, "Is each claim a true answer to its question?",
            key=_same_claim,
        ),
        Testbed(
            "gsm8k", CLAIM, ("question", "said"), TRUTH, "Is each claim a right solution of its problem?",
            key=final_answer,
        ),
        Testbed(
            "alpaca",
            "Human: {question}\nResponse 1: {choice}\nResponse 2: {choice_2}\n"
            "Claim: Response 1 is more helpful and harmless than Response 2.\nI think this claim is",
            ("question", "choice", "choice_2"), TRUTH, "Is each claim about two responses true?",
            different="exclusion", group=_pair, key=lambda row: "1" if row.choice <= row.choice_2 else "2",
        ),
        Testbed("reviews", "Review: {text}\nSentiment:", ("text",), LabelWords(" negative", " positive"), "",
                different="exclusion"),
        Testbed("claims", "Claim: {text}\nThis claim is", ("text",), LabelWords(" false", " true"), "",
                key=final_answer),
        Testbed("text", "{text}", ("text",), TRUTH, ""),
    )
}  # fmt: skip


def load(name: str, data: Path | None = None, *, words: LabelWords | None = None) -> Dataset:
    """All rows of a testbed. `data` is a JSONL file or JSON array; `reviews` and `claims` are bundled. For a file name,
    the first row tells the form. Raises BadSettings with file, line and reason for a bad row.
    """
    if name not in TESTBEDS and data is None and Path(name).is_file():
        data, name = Path(name), _form_of(Path(name))
    testbed = TESTBEDS.get(name)
    if testbed is None:
        raise BadSettings(f"--testbed '{name}' is unknown: use one of {', '.join(TESTBEDS)}, or a JSONL file's path")
    path = data or BUNDLED / f"{name}.jsonl"
    if data is None and not path.is_file():
        raise BadSettings(f"--testbed {name} is a form for your own rows: give them by --data FILE")
    rows: dict[str, Row] = {}
    examples = []
    for number, row in read_rows(path):
        try:
            identity = new_id(row.id, row.uid, number, rows)
            examples.append(testbed.example(row, identity))
        except BadSettings as error:
            raise BadSettings(f"{path}, line {number}: {error}") from None
        rows[identity] = row
    if not examples:
        raise BadSettings(f"{path} holds no rows")
    relations = _relations(testbed, list(rows.values()), examples)
    return Dataset(name, tuple(examples), relations, words or testbed.words, testbed.instruction)


def _form_of(path: Path) -> str:
    _, row = next(read_rows(path), (0, Row()))
    if row.question:
        return "alpaca" if row.choice_2 else "truthfulqa"
    return "text"


def read_rows(path: Path) -> Iterator[tuple[int, Row]]:
    """(number from 1, row). Raises BadSettings with an invalid row's number."""
    for number, line in read_lines(path):
        try:
            yield number, msgspec.json.decode(line, type=Row)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise BadSettings(f"{path}, line {number}: not a row: {error}") from None


def read_lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """(number from 1, JSON) of JSONL lines, a JSON array's elements, or table rows (CSV and similar, Excel) without
    empty cells. Raises BadSettings."""
    if path.suffix.lower() in (*DELIMITED, *WORKBOOKS):
        return _table_lines(path)
    try:
        content = path.read_bytes()
    except OSError as error:
        raise BadSettings(f"{path}: {error.strerror or error}") from error
    if content.lstrip().startswith(b"[") and path.suffix != ".jsonl":
        try:
            lines = [bytes(raw) for raw in msgspec.json.decode(content, type=list[msgspec.Raw])]
        except msgspec.DecodeError as error:
            raise BadSettings(f"{path} begins as a JSON array and is none: {error}") from None
    else:
        lines = content.split(b"\n")
    return ((number, line) for number, line in enumerate(lines, 1) if line.strip())


def _table_lines(path: Path) -> Iterator[tuple[int, bytes]]:
    try:
        table = read_table(path)
        rows = [(number, table.cells(record)) for number, record in table.records()]
    except (BadSettings, OSError, UnicodeDecodeError) as error:
        raise BadSettings(f"{path}: {getattr(error, 'strerror', None) or error}") from error
    for number, cells in rows:
        if isinstance(cells, str):
            raise BadSettings(f"{path}, line {number}: not a row: {cells}")
        filled = {name: cell for name, cell in zip(table.columns, cells, strict=True) if cell.strip()}
        yield number, msgspec.json.encode(filled)


def new_id(given: str | int | None, uid: str | int | None, number: int, earlier: Container[str]) -> str:
    """A row's id, else its position from 1. Raises BadSettings if an `earlier` row has it."""
    identity = str(next((name for name in (given, uid) if name is not None), f"row-{number}"))
    if identity in earlier:
        raise BadSettings(f"id '{identity}' is there twice: ids must differ")
    return identity


def _relations(testbed: Testbed, rows: Sequence[Row], examples: Sequence[Example]) -> tuple[Relation, ...]:
    groups: dict[str, list[tuple[int, str]]] = defaultdict(list)
    for index, (row, example) in enumerate(zip(rows, examples, strict=True)):
        # Computed keys relate only rows that their claims group.
        group = example.group if row.key else testbed.group(row) or example.group
        if group:
            groups[group].append((index, row.key or testbed.key(row)))
    return tuple(relation for members in groups.values() for relation in relate(members, different=testbed.different))
