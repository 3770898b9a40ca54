"""The same three people as programs write them, byte by byte as those programs do; and files that must be refused."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date
from typing import Any
from xml.sax.saxutils import escape

import openpyxl

# id, age, city, income, joined
PEOPLE = [
    ("p1", 34, "Köln", 2345.5, date(2024, 1, 31)),
    ("p2", 51, 'Bonn; "Süd", NRW', 1200.0, date(2023, 12, 1)),
    ("p3", 28, "São\nPaulo", 14980.25, date(2022, 7, 15)),
]
HEADER = ("id", "age", "city", "income", "joined")
# What is read: the cells, as text.
READ = [
    ("p1", "34", "Köln", "2345.5", "2024-01-31"),
    ("p2", "51", 'Bonn; "Süd", NRW', "1200", "2023-12-01"),
    ("p3", "28", "São\nPaulo", "14980.25", "2022-07-15"),
]


@dataclass(frozen=True)
class Sheet:
    """A file of that ending. Read, `income` is what numbers as text are rewritten to."""

    made_by: str
    ending: str
    content: bytes
    read_as: str
    income: tuple[str, ...] = ("2345.5", "1200", "14980.25")
    notes: tuple[str, ...] = ()


def table(
    delimiter: str,
    *,
    end: str = "\r\n",
    number: Callable[[float], str] = lambda value: f"{value:g}" if value < 10000 else f"{value:.2f}",
    quoted: Callable[[str], str] | None = None,
    header: str | None = None,
    row: Callable[[str], str] = lambda text: text,
    texts_quoted: bool = False,
) -> str:
    """The people, one line each; a cell is quoted where it must be, or where it is text."""

    def cell(value: Any) -> str:
        text = number(value) if isinstance(value, float) else str(value)
        needs = any(char in text for char in (delimiter, '"', "\n", "\r"))
        if not needs and not (texts_quoted and isinstance(value, str)):
            return text
        return quoted(text) if quoted else '"' + text.replace('"', '""') + '"'

    lines = [delimiter.join(map(cell, HEADER)) if header is None else header]
    lines += [row(delimiter.join(map(cell, person))) for person in PEOPLE]
    return end.join(lines) + end


def _with_empty_cells(row: str) -> str:
    return f"{row};;"


def german(value: float) -> str:
    return f"{value:.2f}".replace(".", ",")


def german_thousands(value: float) -> str:
    return f"{value:,.2f}".replace(",", " ").replace(".", ",").replace(" ", ".")


def french(value: float) -> str:
    return f"{value:,.2f}".replace(",", "\u202f").replace(".", ",")


def workbook(
    *, title: str = "", left: int = 0, sheets: tuple[str, ...] = ("People",), hidden: str = "", gap: bool = False
) -> bytes:
    book = openpyxl.Workbook()
    book.remove(book.active)
    for name in filter(None, (hidden, *sheets)):
        sheet = book.create_sheet(name)
        sheet.sheet_state = "hidden" if name == hidden else "visible"
        if title:
            sheet.append([*[None] * left, title])
            sheet.merge_cells(start_row=1, end_row=1, start_column=left + 1, end_column=left + 4)
            sheet.append([])
        sheet.append([*[None] * left, *HEADER])
        for person in PEOPLE:
            sheet.append([*[None] * left, *person])
            if gap:
                sheet.append([])
    file = io.BytesIO()
    book.save(file)
    return file.getvalue()


def open_document() -> bytes:
    """As LibreOffice writes it, but for styles."""
    urn = "urn:oasis:names:tc:opendocument:xmlns"
    spaces = " ".join(f'xmlns:{name}="{urn}:{name}:1.0"' for name in ("office", "text", "table"))

    def cell(value: Any) -> str:
        kind = {float: "float", int: "float", date: "date"}.get(type(value), "string")
        given = {"float": f' office:value="{value}"', "date": f' office:date-value="{value}"'}.get(kind, "")
        lines = "".join(f"<text:p>{escape(line)}</text:p>" for line in str(value).split("\n"))
        return f'<table:table-cell office:value-type="{kind}"{given}>{lines}</table:table-cell>'

    rows = "".join(f"<table:table-row>{''.join(map(cell, row))}</table:table-row>" for row in (HEADER, *PEOPLE))
    sheet = f'<table:table table:name="People">{rows}</table:table>'
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("mimetype", "application/vnd.oasis.opendocument.spreadsheet")
        archive.writestr(
            "content.xml",
            f"<office:document-content {spaces}><office:body><office:spreadsheet>{sheet}"
            "</office:spreadsheet></office:body></office:document-content>",
        )
        manifest = f'<manifest:manifest xmlns:manifest="{urn}:manifest:1.0"/>'
        archive.writestr("META-INF/manifest.xml", manifest)
    return file.getvalue()


DE = ("2345.50", "1200.00", "14980.25")
_INDEX = "the first column has no name: taken as numbers of the rows, and left out"


def _numbered(text: str, mark: str = "", start: int = 0) -> str:
    """Lines of `text` with an index before them, as pandas and R write it; the city's line break is inside of one."""
    head, *rows = text.replace("São\nPaulo", "São\0Paulo").splitlines()
    lines = [head, *(f"{mark}{number}{mark}{row}" for number, row in enumerate(rows, start))]
    return "\n".join(lines).replace("\0", "\n") + "\n"


PLAIN = table(";", end="\n")
SHEETS = [
    Sheet("Excel, German, CSV", ".csv", table(";", number=german).encode("cp1252"), "`;`, cp1252", DE),
    Sheet("Excel, German, CSV UTF-8", ".csv", table(";", number=german).encode("utf-8-sig"), "`;`, UTF-8", DE),
    Sheet("Excel, German, thousands", ".csv", table(";", number=german_thousands).encode("cp1252"), "`;`, cp1252", DE),
    Sheet("Excel, US, CSV", ".csv", table(",").encode("cp1252"), "`,`, cp1252"),
    Sheet("Excel, US, CSV UTF-8", ".csv", table(",").encode("utf-8-sig"), "`,`, UTF-8"),
    Sheet("Excel, US, thousands", ".csv", table(",", number=lambda v: f"{v:,.2f}").encode("cp1252"), "`,`, cp1252", DE),
    Sheet("Excel, French, CSV", ".csv", table(";", number=french).encode(), "`;`, UTF-8", DE),
    Sheet(
        "Excel, French, no-break spaces",
        ".csv",
        table(";", number=lambda value: french(value).replace("\u202f", "\xa0")).encode("cp1252"),
        "`;`, cp1252",
        DE,
    ),
    Sheet("Excel, Swiss", ".csv", table(";", number=lambda v: f"{v:,.2f}".replace(",", "'")).encode("cp1252"),
          "`;`, cp1252", DE),
    Sheet("Excel, Unicode text", ".txt", table("\t").encode("utf-16"), "tab, UTF-16"),
    Sheet("Excel, big-endian", ".txt", b"\xfe\xff" + table("\t").encode("utf-16-be"), "tab, UTF-16"),
    Sheet("UTF-16 without a mark", ".csv", table(";").encode("utf-16-le"), "`;`, UTF-16"),
    Sheet("Excel, text, tabs", ".txt", table("\t").encode("cp1252"), "tab, cp1252"),
    Sheet("Excel, sep=", ".csv", ("sep=;\r\n" + table(";", number=german)).encode("cp1252"), "`;`, cp1252", DE),
    Sheet("Excel, sep=, UTF-16", ".csv", ("sep=\t\r\n" + table("\t")).encode("utf-16"), "tab, UTF-16"),
    Sheet("Excel for Mac, old line ends", ".csv", table(";", end="\r").replace("São\n", "São\r").encode("cp1252"),
          "`;`, cp1252"),
    Sheet("LibreOffice", ".csv", table(",", end="\n").encode(), "`,`, UTF-8"),
    Sheet("LibreOffice, German, texts quoted", ".csv",
          table(";", end="\n", number=german, texts_quoted=True).encode(), "`;`, UTF-8", DE),
    Sheet("LibreOffice, tabs", ".tsv", table("\t", end="\n", texts_quoted=True).encode(), "tab, UTF-8"),
    Sheet("pandas, to_csv", ".csv", _numbered(table(",", end="\n", header="," + ",".join(HEADER),
                                                    row=lambda text: "," + text)).encode(), "`,`, UTF-8",
          notes=(_INDEX,)),
    Sheet("pandas, read and written again", ".csv",
          _numbered(table(",", end="\n", header="Unnamed: 0," + ",".join(HEADER),
                          row=lambda text: "," + text)).encode(), "`,`, UTF-8", notes=(_INDEX,)),
    Sheet("pandas, index=False", ".csv", table(",", end="\n").encode(), "`,`, UTF-8"),
    Sheet("pandas, sep=';', decimal=','", ".csv",
          table(";", end="\n", number=lambda v: str(v).replace(".", ",")).encode(), "`;`, UTF-8",
          ("2345.5", "1200.0", "14980.25")),
    Sheet("pandas, utf-16", ".csv", table(",", end="\n").encode("utf-16"), "`,`, UTF-16"),
    Sheet("R, write.csv", ".csv", _numbered(table(",", end="\n", header='"",' + ",".join(f'"{n}"' for n in HEADER),
                                                  row=lambda text: "," + text, texts_quoted=True), '"', 1).encode(),
          "`,`, UTF-8", notes=(_INDEX,)),
    Sheet("R, write.csv2", ".csv", _numbered(table(";", end="\n", header='"";' + ";".join(f'"{n}"' for n in HEADER),
                                                   number=lambda v: f"{v:.15g}".replace(".", ","), texts_quoted=True,
                                                   row=lambda text: ";" + text), '"', 1).encode("latin-1"),
          "`;`, cp1252", notes=(_INDEX,)),
    Sheet("R, write.table, escaped quotes", ".txt",
          table("\t", end="\n", texts_quoted=True, quoted=lambda t: '"' + t.replace('"', '\\"') + '"').encode(),
          "tab, UTF-8"),
    Sheet("Google Sheets", ".csv", table(",").encode(), "`,`, UTF-8"),
    Sheet("MySQL, escaped quotes", ".csv",
          table(",", end="\n", texts_quoted=True, quoted=lambda t: '"' + t.replace('"', '\\"') + '"').encode(),
          "`,`, UTF-8"),
    Sheet("PostgreSQL, pipes", ".csv", table("|", end="\n").encode(), "`|`, UTF-8"),
    Sheet("by hand, spaces after commas", ".csv",
          table(",", end="\n").replace('",', '", ').replace(",", ", ").replace(",  ", ", ").replace(
              'Bonn; ""Süd"", , NRW', 'Bonn; ""Süd"", NRW').replace('"",  NRW', '"", NRW').encode(),
          "`,`, UTF-8"),
    Sheet("Excel, title above", ".csv", ("Customers, 2024;;;;\r\n;;;;\r\n" + table(";")).encode("cp1252"),
          "`;`, cp1252", notes=("the header is line 3, below a title",)),
    Sheet("a title by another program", ".csv", ("Export of 2024-02-01\n\n" + PLAIN).encode(), "`;`, UTF-8",
          notes=("the header is line 3, below a title",)),
    Sheet("merged group names above", ".csv", ("Who;;;Money;\n" + PLAIN).encode(), "`;`, UTF-8",
          notes=("the header is line 2, below a title",)),
    Sheet("empty columns to the right", ".csv",
          table(";", header=";".join(HEADER) + ";;", row=_with_empty_cells).encode(), "`;`, UTF-8"),
    Sheet("empty columns in the rows alone", ".csv", table(";", row=_with_empty_cells).encode(), "`;`, UTF-8"),
    Sheet("an empty column to the left", ".csv",
          table(";", header=";" + ";".join(HEADER), row=lambda text: ";" + text).encode(), "`;`, UTF-8"),
    Sheet("empty rows", ".csv", ("\n\n" + PLAIN.replace("\np2", "\n;;;;\n\np2") + ";;;;\n \n").encode(), "`;`, UTF-8"),
    Sheet("names with blanks and breaks", ".csv",
          table(";", header='" id";"age ";"city\n";income;joined').encode(), "`;`, UTF-8"),
    Sheet("no line end at the end", ".csv", PLAIN.rstrip("\n").encode(), "`;`, UTF-8"),
    Sheet("Excel", ".xlsx", workbook(), "sheet 'People'"),
    Sheet("Excel, title and gaps", ".xlsx", workbook(title="Customers 2024", left=1, gap=True), "sheet 'People'",
          notes=("the header is line 3, below a title",)),
    Sheet("LibreOffice, ODS", ".ods", open_document(), "sheet 'People'"),
    Sheet("Excel, more sheets", ".xlsx", workbook(sheets=("People", "Old"), hidden="Lookup"), "sheet 'People'",
          notes=("other sheets are left out: 'Old'",)),
]  # fmt: skip

_KYRILLIC = "имя;возраст\n" + "Иван;31\nАнна;32\nПётр;33\nЖанна;34\n"
_POLISH = "imię;age\nPaweł;31\nMałgorzata;32\nWładysław;33\nBożena;34\nWiesława;35\n"
_GERMAN = "Name;age\nMüller;31\nBäcker;32\nNürnberg;33\nGünther;34\n"
_NAMES = "age;city\n"
# what it is, ending, content, what must be said
REFUSED: list[tuple[str, str, bytes, str]] = [
    ("an empty file", ".csv", b"", "line 1 has no column names: the file is empty"),
    ("only blank lines", ".csv", b"\r\n;;\r\n", "the file is empty"),
    ("a header alone", ".csv", _NAMES.encode(), "has no rows"),
    ("the same name twice", ".csv", b"age;city;age\n34;Bonn;3\n", "two columns 'age': rename one"),
    ("a column without a name", ".csv", b"age;;city\n34;x;Bonn\n35;y;Ulm\n", "line 1 has no name for column 2"),
    ("merged names in two lines", ".csv", b"age;money;;\n;2023;2024;2025\n34;1;2;3\n35;1;2;4\n",
     "line 1 has no name for column 3, 4, which has values: give each column one name, in one line"),
    ("no header", ".csv", b"34;m;Bonn\n35;f;Ulm\n", "no column is known .34, m, Bonn"),
    ("unknown names", ".csv", b"Alter;Ort\n34;Bonn\n", "no column is known .Alter, Ort.*--map gender='Alter'"),
    ("Cyrillic", ".csv", _KYRILLIC.encode("cp1251"), "neither UTF-8 nor Western text .* CSV UTF-8"),
    ("Central European", ".csv", _POLISH.encode("cp1250"), "neither UTF-8 nor Western text .* CSV UTF-8"),
    ("MS-DOS", ".csv", "Name;age\nMüller;31\nBäcker;32\nSüß;33\n".encode("cp850"), "neither UTF-8 nor Western text"),
    ("Macintosh", ".csv", _GERMAN.encode("mac_roman"), "neither UTF-8 nor Western text .* CSV UTF-8"),
    ("Chinese", ".csv", "姓名;age\n王小明;31\n李大华;32\n张伟强;33\n".encode("gbk"), "neither UTF-8 nor Western text"),
    ("UTF-32", ".csv", "age;city\n34;Bonn\n".encode("utf-32"), "is in UTF-32"),
    ("a workbook named CSV", ".csv", workbook(), "Excel workbook: give it its ending"),
    ("an old workbook named CSV", ".csv", b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "Excel workbook: give it its ending"),
    ("a PDF", ".csv", b"%PDF-1.7\n", "is a PDF"),
    ("Parquet named CSV", ".csv", b"PAR1\x15\x04", "is a Parquet file"),
    ("a web page named Excel", ".xls", b"<html><table><tr><td>age</td></tr>", "is no workbook that can be read"),
    ("an empty workbook", ".xlsx", b"", "is no workbook that can be read"),
    ("an open quote", ".csv", b'age;city\n34;"Bonn\n35;Ulm\n', "no row makes a person; line 2: unexpected end of data"),
    ("rows of other lengths", ".csv", b"age;city\n34;Bonn;x\n35\n", "line 2: 3 fields, where the header has 2"),
]  # fmt: skip
