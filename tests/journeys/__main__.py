"""`python -m tests.journeys`: an operator, an analyst, an engineer and a researcher do their work at a terminal.

The server has simulated engines: what is tried is what people see and type, not a model. Then spreadsheets and mistakes
in config files, by their own tests. Prints a table and one JSON line, last; exit code 1 if a step failed.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import yaml
from rich.console import Console
from rich.table import Table

from serve_app.serving.launch.local import local_serve
from serve_app.serving.launch.simulated import simulate
from tests.conftest import own_document, unused_port
from tests.journeys import analyst, engineer, operator, pages, researcher
from tests.journeys.kit import ROOT, Person
from tests.outcomes import run_tests

console = Console(soft_wrap=True)
ON_A_SERVER: dict[str, Callable[[Person], None]] = {
    "analyst": analyst.journey,
    "engineer": engineer.journey,
    "researcher": researcher.journey,
}
KINDS = {
    "spreadsheets": "tests/tables/test_spreadsheets.py",
    "config_mistakes": "tests/serving/launch/test_mistakes.py",
}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.journeys", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", type=Path, default=None, help="write the JSON line there too")
    options = parser.parse_args()
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as name:
        people = walk(Path(name))
    kinds = {kind: run_tests(str(ROOT / path)) for kind, path in KINDS.items()}
    table = Table("journey", "steps", "failed")
    for who, person in people.items():
        table.add_row(who, str(len(person.steps)), str(len(person.failures)))
    console.print(table)
    failures = [f"{who}: {failure}" for who, person in people.items() for failure in person.failures]
    for failure in failures:
        console.print(failure, markup=False)
    failed = len(failures) + sum(counts["failed"] for counts in kinds.values())
    result = {
        "journeys": len(people),
        "steps": sum(len(person.steps) for person in people.values()),
        "failed": failed,
        **{kind: counts["passed"] for kind, counts in kinds.items()},
        "pages_in_a_browser": len(pages.looked_at),
        "simulated": True,
        "wall_s": round(time.monotonic() - started, 1),
    }
    line = json.dumps(result)
    if options.json:
        options.json.write_text(line + "\n")
    print(line, flush=True)
    return 1 if failed else 0


def walk(folder: Path) -> dict[str, Person]:
    """The operator's journey, with a server of its own; then the others' on one server."""
    people = {"operator": person_in(folder / "operator", f"http://127.0.0.1:{unused_port()}")}
    console.print("operator")
    operator.journey(people["operator"])
    document = own_document(folder)
    simulate(document)
    config = folder / "config.yaml"
    config.write_text(yaml.safe_dump(document))
    with local_serve(config, log=folder / "serve.log", on_wait=console.print) as base_url:
        for who, journey in ON_A_SERVER.items():
            console.print(who)
            people[who] = person_in(folder / who, base_url)
            journey(people[who])
    return people


def person_in(folder: Path, base_url: str) -> Person:
    """A person in a new folder."""
    folder.mkdir()
    return Person(folder, base_url)


if __name__ == "__main__":
    raise SystemExit(main())
