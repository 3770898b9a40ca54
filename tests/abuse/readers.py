"""Hostile files to each reader, in a process of their own: a library in C may end it, which is then one crash."""

from __future__ import annotations

import multiprocessing
import os
import tempfile
import traceback
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import yaml

from serve_app.driver.sources.source import open_source
from serve_app.errors import ServeAppError
from serve_app.serving.gate.keys import read_keys
from serve_app.serving.launch.config import ServeConfig
from serve_app.spec import JobSpec
from serve_app.workloads.ctr.people.bank import load_bank
from serve_app.workloads.ctr.people.profile_file import ProfileFile, read_people
from tests.abuse.documents import FORMATS, hostile_file, hostile_yaml
from tests.abuse.junk import Junk
from tests.abuse.ledger import Ledger

ROOT = Path(__file__).parents[2]
KEYS = {"keys": [{"name": "a", "sha256": "0" * 64, "created": "2026-11-21T10:00:00Z", "scopes": ["inference"],
                  "requests_per_minute": 5}]}  # fmt: skip
# An input may take so long; a workbook has a process of its own that takes some of it.
BOUND_S = 30.0


def _population(path: Path, **fields: Any) -> None:
    source = open_source(JobSpec(source=str(path), **fields), folder_url=str(path.parent))
    for read in (source.ids, source.rows, source.inputs):
        for _ in read():
            pass
    source.count()


def _batch(path: Path) -> None:
    _population(path, endpoint="/v1/chat/completions", format="jsonl")


def _templated(path: Path) -> None:
    _population(path, prompt="{prompt}")


def _people(path: Path) -> None:
    read_people(ProfileFile(path), load_bank("default"))


# By name in the result: a name of the file's, and who reads it.
FILES: dict[str, tuple[str, Callable[[Path], Any]]] = {
    **{f"population {kind}": (kind, _population) for kind in FORMATS},
    **{f"population {kind}, template": (kind, _templated) for kind in FORMATS},
    **{f"profiles {kind}": (kind, _people) for kind in FORMATS},
    "batch file": ("jsonl", _batch),
}
# Good documents of those that are YAML.
DOCUMENTS: dict[str, tuple[Path | dict[str, Any], Callable[[Path], Any], str]] = {
    "bank": (ROOT / "serve_app/workloads/ctr/people/banks/default.yaml", load_bank, "yaml"),
    "bank, JSON": (ROOT / "serve_app/workloads/ctr/people/banks/default.yaml", load_bank, "json"),
    "config file": (ROOT / "config.yaml", ServeConfig.load, "yaml"),
    "key file": (KEYS, read_keys, "yaml"),
    "key file, JSON": (KEYS, read_keys, "json"),
}


def hostile_input(junk: Junk, folder: Path) -> tuple[str, Path, Callable[[Path], Any]]:
    """The format's name, a file, and its reader."""
    name = junk.pick(*FILES, *DOCUMENTS)
    if name in FILES:
        kind, reader = FILES[name]
        ending, content = hostile_file(junk, kind)
    else:
        given, reader, ending = DOCUMENTS[name]
        good = yaml.safe_load(given.read_text()) if isinstance(given, Path) else given
        content = junk.encoded(junk.changed(good)) if ending == "json" else hostile_yaml(junk, good)
    path = folder / f"in.{ending}"
    path.write_bytes(content)
    return name, path, reader


def read_hostile(ledger: Ledger, *, seed: int, inputs: int) -> None:
    """Give readers inputs 0 to `inputs` of that seed."""
    context, number = multiprocessing.get_context("spawn"), 0
    while number < inputs:
        ours, theirs = context.Pipe(duplex=False)
        worker = context.Process(target=_work, args=(theirs, seed, number, inputs), daemon=True)
        worker.start()
        theirs.close()
        name, kind = "", ""
        for message in _messages(ours):
            if message[0] == "reads":
                _, number, name = message
                ledger.formats[name] += 1
            elif message[0] == "slow":
                kind = "slow"
                worker.kill()
            else:
                ledger.fail(name, message[0], f"file:{number}", message[1])
        worker.join()
        if worker.exitcode:
            ledger.fail(name, kind or "crash", f"file:{number}", f"the process ended: {worker.exitcode}")
        number += 1


def _messages(connection: Connection) -> Iterator[tuple[Any, ...]]:
    """What the worker says, until it ends; ("slow",) if it says nothing for BOUND_S."""
    while True:
        if not connection.poll(BOUND_S):
            yield ("slow",)
            return
        try:
            yield connection.recv()
        except EOFError:
            return


def _work(connection: Connection, seed: int, first: int, last: int) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.chdir(folder)
        for number in range(first, last):
            junk = Junk(f"{seed}:file:{number}", name, 9)
            kind, path, reader = hostile_input(junk, folder)
            connection.send(("reads", number, kind))
            try:
                reader(path)
            except ServeAppError as error:
                if not str(error):
                    connection.send(("shape", "an error without a message"))
            except BaseException as error:  # also a panic of Rust, which is no Exception
                connection.send(("crash", f"{path.name}: {''.join(traceback.format_exception(error))[-1200:]}"))
            path.unlink()
            if left := [*folder.iterdir()]:
                connection.send(("outside", left))
    connection.close()
