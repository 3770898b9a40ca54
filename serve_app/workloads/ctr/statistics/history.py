"""Historic ads for calibration: text, platform, impressions and clicks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from scipy import stats

from serve_app.bounded_yaml import check_size
from serve_app.errors import BadSettings
from serve_app.tables.table import DELIMITED, WORKBOOKS, Table, read_table

EXAMPLE = "ad, platform, impressions, clicks"


class HistoricAd(BaseModel):
    """An ad that ran. Unknown keys are refused, since a mistyped `click` would mean none."""

    model_config = ConfigDict(frozen=True, extra="forbid", str_strip_whitespace=True)

    ad: str = Field(min_length=1)
    platform: str = Field(min_length=1)
    impressions: int = Field(ge=1)
    clicks: int = Field(ge=0)

    @model_validator(mode="after")
    def _clicks_are_impressions(self) -> HistoricAd:
        if self.clicks > self.impressions:
            raise ValueError(f"{self.clicks} clicks exceed {self.impressions} impressions")
        return self


def read_history(path: Path) -> list[HistoricAd]:
    """Ads of a table (CSV and similar, Excel), or of a YAML or JSON list of mappings. Raises BadSettings naming every
    wrong row (from 1).
    """
    ads, problems = [], []
    for number, record in enumerate(_records(path), 1):
        try:
            ads.append(HistoricAd.model_validate(record))
        except ValidationError as error:
            problems += [f"row {number}: {_say(problem)}" for problem in error.errors()]
    if problems:
        raise BadSettings(f"{path}: {'; '.join(problems)} (a row has {EXAMPLE})")
    if not ads:
        raise BadSettings(f"{path} has no ads: give rows of {EXAMPLE}")
    return ads


def _records(path: Path) -> list[Any]:
    try:
        if path.suffix.lower() in (*DELIMITED, *WORKBOOKS):
            return _rows(read_table(path))
        text = path.read_text(encoding="utf-8-sig")
        check_size(text)
        document = yaml.safe_load(text)
    except (BadSettings, OSError, ValueError, yaml.YAMLError) as error:
        raise BadSettings(f"{path}: {getattr(error, 'strerror', None) or error}") from error
    if not isinstance(document, list):
        raise BadSettings(f"{path} must be a list of ads, each with {EXAMPLE}")
    return document


def _rows(table: Table) -> list[Any]:
    found = []
    for _, record in table.records():
        cells = table.cells(record)
        # Key None marks unreadable cells, refused with the row number.
        found.append({"None": cells} if isinstance(cells, str) else dict(zip(table.columns, cells, strict=True)))
    return found


def _say(problem: Any) -> str:
    where = ".".join(map(str, problem["loc"]))
    return f"{where}: {problem['msg']}" if where else str(problem["msg"]).removeprefix("Value error, ")


def observed_interval(clicks: int, impressions: int, *, level: float = 0.95) -> tuple[float, float]:
    """Wilson's interval of an observed rate."""
    found = stats.binomtest(clicks, impressions).proportion_ci(level, method="wilson")
    return float(found.low), float(found.high)
