"""Bombs and very long lines, each in a process of its own whose memory is measured."""

from __future__ import annotations

import gzip
import io
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet

from serve_app.errors import ServeAppError
from tests.abuse.documents import sheet, workbook
from tests.abuse.ledger import Ledger
from tests.abuse.readers import DOCUMENTS, FILES

MB = 1 << 20
# What a reader may add to a process, and how long it may take.
MOST_MB, BOUND_S = 512, 120.0


def _laughs() -> bytes:
    lines = ["a: &a [x,x,x,x,x,x,x,x,x,x]"]
    lines += [f"{chr(98 + i)}: &{chr(98 + i)} [{','.join(['*' + chr(97 + i)] * 10)}]" for i in range(9)]
    return "\n".join(lines).encode()


def _far() -> bytes:
    return workbook(
        sheet('<row r="1"><c r="A1"><v>1</v></c></row><row r="1048576"><c r="XFD1048576"><v>1</v></c></row>')
    )


def _big_sheet() -> bytes:
    return workbook(sheet("<row>" + "<c><v>1</v></c>" * 100 + "</row>").replace(
        b"</sheetData>", b"<row><c><v>1</v></c></row>" * 12_000_000 + b"</sheetData>"))  # fmt: skip


def _big_cells() -> bytes:
    sink = io.BytesIO()
    pa.parquet.write_table(pa.table({"prompt": ["a" * MB] * 400}), sink, compression="zstd")
    return sink.getvalue()


# Readers' names (readers.py), and what they get.
HEAVY: dict[str, tuple[str, str, Callable[[], bytes]]] = {
    "100 MB line": ("population jsonl", "jsonl", lambda: b'{"prompt": "' + b"a" * 100 * MB + b'"}\n{"prompt": "b"}\n'),
    "100 MB line, CSV": ("population csv, template", "csv", lambda: b"prompt\n" + b"a" * 100 * MB + b"\nb\n"),
    "100 MB quoted field": (
        "population csv, template",
        "csv",
        lambda: b'prompt,x\n"' + (b"a" * 1023 + b"\n") * 100 * 1024,
    ),
    "100 MB header": ("population csv, template", "csv", lambda: b"a," * 50 * MB),
    "100 MB line, batch": ("batch file", "jsonl", lambda: b"[" * 100 * MB),
    "gzip bomb": ("population jsonl", "jsonl.gz", lambda: gzip.compress(b"\x00" * 1000 * MB, 1)),
    "gzip bomb, CSV": ("population csv, template", "csv.gz", lambda: gzip.compress(b"," * 1000 * MB, 1)),
    "zstd bomb": ("population jsonl", "jsonl.zst", lambda: _zstd(b" " * 1000 * MB)),
    "zip bomb, one far cell": ("population xlsx", "xlsx", _far),
    "zip bomb, one cell, far": ("population xlsx", "xlsx", lambda: workbook(sheet('<c r="XFD1048576"><v>1</v></c>'))),
    "zip bomb, many rows": ("population xlsx", "xlsx", _big_sheet),
    "Parquet, large cells": ("population parquet", "parquet", _big_cells),
    "billion laughs, config": ("config file", "yaml", _laughs),
    "billion laughs, bank": ("bank", "yaml", _laughs),
    "billion laughs, keys": ("key file", "yaml", _laughs),
    "deep YAML, config": ("config file", "yaml", lambda: b"[" * 200_000),
    "deep YAML, bank": ("bank", "yaml", lambda: b"- " * 200_000),
    "deep YAML, keys": ("key file", "yaml", lambda: b"[" * 200_000),
    "deep JSON, bank": ("bank, JSON", "json", lambda: b"[" * 200_000),
    "deep JSON, keys": ("key file, JSON", "json", lambda: b'{"a":' * 200_000),
    "deep JSON lines": ("population jsonl", "jsonl", lambda: b"[" * 1_000_000 + b"\n" + b'{"a":' * 1_000_000),
}
SMALL = tuple(name for name in HEAVY if name.startswith(("deep", "billion", "zip bomb, one")))


def _zstd(content: bytes) -> bytes:
    return bytes(pa.Codec("zstd").compress(content, asbytes=True))


def read_heavy(ledger: Ledger, names: tuple[str, ...] = tuple(HEAVY)) -> float:
    """Give each to its reader; the most that one added to its process, in MB."""
    most = 0.0
    for name in names:
        reader, ending, make = HEAVY[name]
        ledger.formats[f"{reader}, heavy"] += 1
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / f"in.{ending}"
            path.write_bytes(make())
            command = [sys.executable, "-m", "tests.abuse.heavy", reader, str(path)]
            try:
                done = subprocess.run(command, capture_output=True, timeout=BOUND_S, check=False, text=True)
            except subprocess.TimeoutExpired:
                ledger.fail(f"{reader}, heavy", "slow", name, f"no end after {BOUND_S:g} s")
                continue
        if done.returncode:
            ledger.fail(f"{reader}, heavy", "crash", name, f"{done.returncode} {done.stderr[-800:]}")
            continue
        grown = json.loads(done.stdout)["grown_mb"]
        most = max(most, grown)
        if grown > MOST_MB:
            ledger.fail(f"{reader}, heavy", "memory", name, f"{grown} MB")
    return most


def main(name: str, path: str) -> None:
    reader = FILES[name][1] if name in FILES else DOCUMENTS[name][1]
    before, said = _peak_mb(), ""
    try:
        reader(Path(path))
    except ServeAppError as error:
        said = str(error)[:300]
    print(json.dumps({"grown_mb": round(_peak_mb() - before, 1), "said": said}))


def _peak_mb() -> float:
    # Not getrusage: a process inherits that peak from the one that started it.
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024


if __name__ == "__main__":
    main(*sys.argv[1:])
