"""Hostile files of each format, small ones; `heavy.py` has the large ones."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import zipfile
from functools import cache, partial
from typing import Any

import pyarrow as pa
import pyarrow.parquet
import yaml

from tests.abuse.junk import FORMULAS, TEMPLATES, Junk

FORMATS = ("csv", "jsonl", "parquet", "xlsx")
ASK = {"custom_id": "a", "method": "POST", "url": "/v1/chat/completions", "body": {"model": "sim", "max_tokens": 2,
       "messages": [{"role": "user", "content": "a"}]}}  # fmt: skip
COMPRESS: dict[str, Any] = {"gz": gzip.compress, "bz2": bz2.compress,
                            "zst": partial(pa.Codec("zstd").compress, asbytes=True)}  # fmt: skip


def hostile_file(junk: Junk, ending: str = "") -> tuple[str, bytes]:
    """An ending, as "csv" or "jsonl.gz", and a file's bytes, which may be anything."""
    ending = ending or junk.pick(*FORMATS)
    content = _MAKERS[ending](junk)
    if junk.random.random() < 0.2:
        packing = junk.pick(*COMPRESS)
        content, ending = COMPRESS[packing](content), f"{ending}.{packing}"
    return ending, broken(junk, content)


def broken(junk: Junk, content: bytes) -> bytes:
    """The content, or what a bad disk or a bad mind makes of it."""
    at = junk.random.randint(0, len(content))
    flipped = bytearray(content)
    for _ in range(junk.random.randint(1, 8)):
        if flipped:
            flipped[junk.random.randrange(len(flipped))] = junk.random.randrange(256)
    return bytes(junk.pick(content, content, content, content[:at], content[:at] + junk.bytes() + content[at:],
                           bytes(flipped), bytes(flipped), b"", b"\x00" * 50, content + content,
                           junk.bytes()))  # fmt: skip


def _csv(junk: Junk) -> bytes:
    end, sep = junk.pick("\n", "\r\n", "\r", "\n\n"), junk.pick(",", ";", "\t", "|", "\x00", ",,")
    names = [junk.pick("prompt", "id", "custom_id", junk.text()) for _ in range(junk.random.randint(1, 5))]
    lines = [sep.join(names)]
    for _ in range(junk.random.randint(0, 6)):
        cells = [
            str(junk.pick(junk.value(), *FORMULAS, '"', '""', '"a', "a\nb")) for _ in range(junk.random.randint(0, 7))
        ]
        lines.append(sep.join(cells))
    encoding = junk.pick("utf-8", "utf-8", "utf-16", "latin-1", "utf-32", "utf-7", "cp037")
    return str(end.join(lines)).encode(encoding, "surrogatepass" if encoding.startswith("utf-8") else "replace")


def _jsonl(junk: Junk) -> bytes:
    row: Any = junk.pick({"prompt": "a"}, {"custom_id": "a", "messages": [{"role": "user", "content": "a"}]}, ASK)
    return b"\n".join(junk.encoded(junk.changed(row)) for _ in range(junk.random.randint(0, 5)))


def _parquet(junk: Junk) -> bytes:
    values: Any = junk.pick(
        pa.array(["a", None]), pa.array([b"\xff", b"\x00"]), pa.array([[1], []]), pa.array([{"role": "user"}, None]),
        pa.array([2**63 - 1, 0]), pa.array([float("nan"), float("inf")]), pa.array([None, None]),
        pa.array([10**15, -(10**15)], pa.timestamp("s")), pa.array(["a", "a"]).dictionary_encode(),
        pa.array([2**62, 1], pa.duration("s")), pa.array([10**30, 1], pa.decimal128(38, 0)),
        pa.array([2**31 - 1, -(2**31)], pa.date32()), pa.array([[("a", 1)], []], pa.map_(pa.string(), pa.int64())),
    )  # fmt: skip
    names = [
        junk.pick("prompt", "custom_id", "messages", "id", junk.text().replace("\ud800", "").replace("\udfff", ""))
    ]
    names += ["prompt"] * junk.random.randint(0, 1)
    sink = io.BytesIO()
    pa.parquet.write_table(pa.Table.from_arrays([values] * len(names), names=names), sink)
    return sink.getvalue()


@cache
def _book() -> bytes:
    import openpyxl

    book = openpyxl.Workbook()
    for row in (["prompt", "id"], ["=1+1", 2], ["a", 1e308]):
        book.active.append(row)
    sink = io.BytesIO()
    book.save(sink)
    return sink.getvalue()


def workbook(sheet: bytes = b"", **parts: bytes) -> bytes:
    """A small workbook whose first sheet has this XML."""
    given = {"xl/worksheets/sheet1.xml": sheet} if sheet else parts
    sink = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(_book())) as old, zipfile.ZipFile(sink, "w", zipfile.ZIP_DEFLATED) as new:
        for name in old.namelist():
            new.writestr(name, given.get(name) or old.read(name))
    return sink.getvalue()


def sheet(cells: str) -> bytes:
    space = "http://schemas.openxmlformats.org/spreadsheetml/2006/main"
    return f'<worksheet xmlns="{space}"><sheetData>{cells}</sheetData></worksheet>'.encode("utf-8", "replace")


def _xlsx(junk: Junk) -> bytes:
    place = junk.pick("A1", "XFD1048576", "ZZZZZZ9", "A0", "", "1", "A99999999999", "a1", "A-1", "A1:B2")
    kind = junk.pick("s", "str", "b", "e", "d", "n", "inlineStr", "x")
    value = junk.pick(
        "99999999", "-1", "1e999", "NaN", "&#0;", "&x;", "<v>", "a" * 40_000, "2958466", "-700000", "#REF!"
    )
    cells = (
        f'<row r="{junk.pick(1, 0, -1, 2**31)}"><c r="{place}" t="{kind}" s="{junk.pick(0, 99, -1)}"><v>{value}</v></c>'
    )
    evil = b'<!DOCTYPE a [<!ENTITY x SYSTEM "file:///etc/passwd"><!ENTITY y "&x;&x;">]>' + sheet(f"{cells}</row>")
    return workbook(junk.pick(sheet(f"{cells}</row>"), sheet(cells), evil, broken(junk, sheet(cells)), b""))


def hostile_yaml(junk: Junk, good: Any) -> bytes:
    """A document for readers of YAML, made bad in its values, its text or its bytes."""
    text = junk.pick(
        _dumped(junk.changed(good)), _dumped(junk.changed(good)), _dumped(junk.changed(good)),
        "a: &a [*a]", "!!python/object/apply:os.system ['id']", "a: 2001-99-99", "? [a]\n: b", "<<: 1", "--- 1\n--- 2",
        "a: *x", "a: !!binary x", "a: !!int x", "\t- a", "%YAML 9.9\n---\na: 1", "a: 1\na: 2", "{a: 1, ? }", "[" * 200,
        "a: " + "9" * 5000, "a: 0x" + "f" * 4000, "a: .inf", "a: " + junk.pick(*TEMPLATES), "a: 1:99:99:99", "- " * 300,
    )  # fmt: skip
    return broken(junk, str(text).encode("utf-8", "surrogatepass"))


def _dumped(document: Any) -> str:
    plain = json.loads(json.dumps(document, default=str))
    try:
        return yaml.safe_dump(plain, allow_unicode=True)
    except RecursionError:
        return json.dumps(plain)  # which is YAML too


_MAKERS = {"csv": _csv, "jsonl": _jsonl, "parquet": _parquet, "xlsx": _xlsx}
