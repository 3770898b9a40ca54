"""Historic ads: what was shown, where, how often, and how often it was clicked. The truth that calibration needs."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from scipy import stats

from serve_app.errors import BadSettings

EXAMPLE = "ad, platform, impressions, clicks"


class HistoricAd(BaseModel):
    """One ad that ran. Unknown keys are refused: a mistyped `click` must not read as no clicks."""

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
    """The ads of a CSV file with those columns, or of a YAML or JSON list of such mappings.

    Raises BadSettings that names every wrong row (from 1), so that one reading of the message mends the file.
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
        text = path.read_text(encoding="utf-8-sig")
        if path.suffix.lower() == ".csv":
            # A cell too many is under the key None, one too few is None: both are refused with the row's number.
            return [{str(key): value for key, value in row.items()} for row in csv.DictReader(text.splitlines(True))]
        document = yaml.safe_load(text)
    except (OSError, UnicodeDecodeError, csv.Error, yaml.YAMLError) as error:
        raise BadSettings(f"{path}: {getattr(error, 'strerror', None) or error}") from error
    if not isinstance(document, list):
        raise BadSettings(f"{path} must be a list of ads, each with {EXAMPLE}")
    return document


def _say(problem: Any) -> str:
    where = ".".join(map(str, problem["loc"]))
    return f"{where}: {problem['msg']}" if where else str(problem["msg"]).removeprefix("Value error, ")


def observed_interval(clicks: int, impressions: int, *, level: float = 0.95) -> tuple[float, float]:
    """Wilson's interval of an observed click-through rate."""
    found = stats.binomtest(clicks, impressions).proportion_ci(level, method="wilson")
    return float(found.low), float(found.high)
