"""Detects a text file's encoding, UTF-8, UTF-16 or Western Windows (cp1252), and decodes its lines.

Samples the file's beginning. Knows no columns. Other code pages (Central European, Cyrillic, East Asian, Mac) are
ambiguous: a file that makes no sense as cp1252 is refused.
"""

from __future__ import annotations

import codecs
import io
import re
from dataclasses import dataclass
from typing import BinaryIO

from serve_app.errors import BadSettings

BLOCK = 1 << 20
# Broken bytes (PEP 383); only their row is refused.
_ESCAPED = re.compile("[\udc80-\udcff]")
_BEYOND_ASCII = re.compile("[^\0-\x7f]")
# Other code pages read as cp1252: four non-ASCII letters in a row, signs or capitals inside words.
_ODD = re.compile(
    "[¡-ÿŠŒŽšœžŸƒ]{4,}"
    "|(?<=[a-zà-ÿ])[À-ÖØ-Þ](?=[A-Za-zÀ-ÿ])"
    "|(?<=[A-Za-zÀ-ÿ])[¡-¬®-¶¸-¿€‚ƒ„“”†‡ˆ‰‹](?=[A-Za-zÀ-ÿ])"
    "|(?<=[A-Za-zà-ÿ])[ŠŒŽŸ](?=[a-zà-ÿ])"
    "|(?<=[a-z]{3})[£³¹¼¾¿]"
    "|[\udc80-\udcff]"
)
# Minimum odd lines, and their share of non-ASCII text.
_ODD_LINES, _ODD_SHARE = 3, 0.25
_SIGNATURES = {
    b"PK\x03\x04": "is a zip file or an Excel workbook: give it its ending (.xlsx)",
    b"\xd0\xcf\x11\xe0": "is an Excel workbook: give it its ending (.xls)",
    b"PAR1": "is a Parquet file: give it its ending (.parquet)",
    b"\x1f\x8b": "is compressed by gzip: unpack it",
    b"%PDF": "is a PDF: export the table as CSV",
}


@dataclass(frozen=True)
class Encoding:
    """`name` is the common name. `fallback`: only ASCII was seen; lines that are not UTF-8 are cp1252.
    `carriage_returns`: lines end in \\r alone, as on old Macs.
    """

    name: str
    codec: str = "utf-8"
    fallback: bool = False
    carriage_returns: bool = False

    def text(self, line: bytes) -> str:
        """Decode a line of `recoded`; invalid bytes become lone surrogates (see `is_text`)."""
        if self.codec == "cp1252":
            return line.decode("cp1252", "surrogateescape")
        if not self.fallback:
            return line.decode("utf-8", "surrogateescape")
        try:
            return line.decode("utf-8")
        except UnicodeDecodeError:
            return line.decode("cp1252", "surrogateescape")

    def recoded(self, file: BinaryIO) -> BinaryIO:
        """The file with lines ending in \\n: UTF-16 as UTF-8, others unchanged."""
        if not self.carriage_returns and not self.codec.startswith("utf-16"):
            return file
        return io.BufferedReader(_Recoded(file, self), BLOCK)


def is_text(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def is_utf8(line: bytes) -> bool:
    try:
        line.decode()
    except UnicodeDecodeError:
        return False
    return True


def detect(sample: bytes, *, whole: bool) -> Encoding:
    """The encoding of a file that begins with `sample`; `whole` means nothing follows.

    Raises BadSettings, without the file's name, for binary data and unknown code pages.
    """
    for signature, problem in _SIGNATURES.items():
        if sample.startswith(signature):
            raise BadSettings(problem)
    if codec := _utf16(sample):
        text = codecs.getincrementaldecoder(codec)("replace").decode(sample)
        return Encoding("UTF-16", codec, carriage_returns=_old_mac(text))
    lone_returns = _old_mac(sample.decode("latin-1"))
    text = codecs.getincrementaldecoder("utf-8")("surrogateescape").decode(sample, final=whole)
    broken = len(_ESCAPED.findall(text))
    beyond = len(_BEYOND_ASCII.findall(text)) - broken
    if not broken:
        return Encoding("UTF-8", fallback=not beyond, carriage_returns=lone_returns)
    if beyond > broken or not _is_western(sample):
        return Encoding("UTF-8", carriage_returns=lone_returns)
    return Encoding("cp1252", "cp1252", carriage_returns=lone_returns)


def _utf16(sample: bytes) -> str | None:
    if sample.startswith((codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE)):
        raise BadSettings("is in UTF-32: save it as CSV UTF-8")
    if sample.startswith(codecs.BOM_UTF16_LE):
        return "utf-16-le"
    if sample.startswith(codecs.BOM_UTF16_BE):
        return "utf-16-be"
    # Without a byte order mark: column names begin with ASCII letters, whose other byte is 0.
    head = sample[:4]
    if len(head) == 4 and head[0] and head[2] and not head[1] and not head[3]:
        return "utf-16-le"
    if len(head) == 4 and head[1] and head[3] and not head[0] and not head[2]:
        return "utf-16-be"
    return None


def _old_mac(text: str) -> bool:
    return "\r" in text and "\n" not in text.removesuffix("\n")


def _is_western(sample: bytes) -> bool:
    """Whether it is valid cp1252. Raises BadSettings if it is clearly another code page."""
    text = sample.decode("cp1252", "surrogateescape")
    odd = list(_ODD.finditer(text))
    lines = {text.count("\n", 0, found.start()) for found in odd[:100]}
    share = sum(len(found[0]) for found in odd) / max(1, len(_BEYOND_ASCII.findall(text)))
    if len(lines) >= _ODD_LINES and share >= _ODD_SHARE:
        line = min(lines) + 1
        raise BadSettings(
            f"line {line} is neither UTF-8 nor Western text (cp1252): save the file as CSV UTF-8 "
            "(Excel: Save As, CSV UTF-8)"
        )
    return not _ESCAPED.search(text)


class _Recoded(io.RawIOBase):
    """Recodes by block to bound memory."""

    def __init__(self, file: BinaryIO, encoding: Encoding) -> None:
        self._file = file
        self._decoder = (
            codecs.getincrementaldecoder(encoding.codec)("surrogatepass") if "16" in encoding.codec else None
        )
        self._returns = encoding.carriage_returns
        self._ready = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        while not self._ready:
            block = self._file.read(BLOCK)
            self._ready = self._recode(block)
            if not block:
                break
        size = min(len(buffer), len(self._ready))
        buffer[:size], self._ready = self._ready[:size], self._ready[size:]
        return size

    def _recode(self, block: bytes) -> bytes:
        if self._decoder is not None:
            try:
                text = self._decoder.decode(block, final=not block)
            except UnicodeDecodeError:  # the file ends within a character: this makes its row unreadable
                self._decoder.reset()
                text = "\ud800"
            block = text.encode("utf-8", "surrogatepass")
        return block.replace(b"\r", b"\n") if self._returns else block
