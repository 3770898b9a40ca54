"""Runs an experiment: every ad on the same people, at once or in batches until decided."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import islice
from typing import Any, Protocol

import pyarrow as pa

from serve_app.errors import BadSettings, ServerUnavailable
from serve_app.spec import JobSpec, JobState, JobStatus
from serve_app.workloads.ctr.asking.answers import read_answers, table
from serve_app.workloads.ctr.asking.prompts import Question
from serve_app.workloads.ctr.people.bank import load_bank
from serve_app.workloads.ctr.people.profiles import draw_profiles
from serve_app.workloads.ctr.statistics.estimate import weights_of
from serve_app.workloads.ctr.statistics.pairing import pair_rows
from serve_app.workloads.ctr.statistics.sequential import Look, SequentialTest
from serve_app.workloads.ctr.study import Client


class RunPopulation(Protocol):
    """Shows an ad to people `start` to `start + size` of one population; returns results (columns of `answers.table`).
    Equal numbers are the same people in every call."""

    def __call__(self, ad: str, platform: str, *, start: int, size: int) -> pa.Table: ...


@dataclass(frozen=True, slots=True)
class Shown:
    ad: str
    platform: str


@dataclass(frozen=True, slots=True)
class Trial:
    """Arms' results by name; `looks` of a sequential test. `size` as requested."""

    results: Mapping[str, pa.Table]
    looks: tuple[Look, ...]
    size: int

    @property
    def rows_saved(self) -> int:
        """People not asked because the test was decided."""
        return self.size - self.looks[-1].rows if self.looks and self.looks[-1].decided else 0


def new_group(kind: str) -> str:
    """A name for related jobs: kind, time (UTC) and four random digits."""
    return f"{kind}-{datetime.now(UTC):%Y%m%d-%H%M%S}-{secrets.token_hex(2)}"


def population_run(
    client: Client,
    *,
    seed: int,
    group: str,
    on_status: Callable[[JobStatus], None] = lambda status: None,
    **job: Any,
) -> RunPopulation:
    """Shows an ad to people of the default identity bank, one job per call with `group` in its metadata.

    `job`: further fields of `spec.JobSpec` (model, provider, …). The call raises BadSettings for an empty ad or unknown
    platform, ServerUnavailable for an incomplete job.
    """
    bank = load_bank("default")

    def run(ad: str, platform: str, *, start: int, size: int) -> pa.Table:
        question = Question(ad, platform)
        people = list(islice(draw_profiles(seed, start, bank), size))
        asked = {"ad": ad, "platform": platform, "seed": seed, "start": start, "size": size, "group": group}
        rows = [row for person in people for row in question.rows(person)]
        fields = {**question.job(external="provider" in job), "metadata": asked, **job}
        job_id = client.submit(JobSpec.of(rows, **fields))
        status = client.wait(job_id, on_status)
        if status.state is not JobState.COMPLETED:
            raise ServerUnavailable(f"job {job_id} ended {status.state}: {status.message or 'see its results'}")
        return table(read_answers(question, people, client.outcomes(job_id)))

    return run


def name_arms(ads: Iterable[str], platforms: Iterable[str]) -> dict[str, Shown]:
    """Every ad on every platform, named A, B, … (several platforms: A on tiktok, …). Raises BadSettings for an empty or
    repeated ad, and for fewer than two arms.
    """
    texts, places = [ad.strip() for ad in ads], list(dict.fromkeys(platforms))
    if not all(texts) or len(set(texts)) < len(texts):
        raise BadSettings("--ad: each ad needs a text of its own")
    letters = [chr(ord("A") + i) if i < 26 else f"ad {i + 1}" for i in range(len(texts))]
    arms = {
        letter if len(places) == 1 else f"{letter} on {platform}": Shown(text, platform)
        for platform in places
        for letter, text in zip(letters, texts, strict=True)
    }
    if len(arms) < 2:
        raise BadSettings("a comparison needs two arms: give --ad twice, or --ad-platform twice")
    return arms


def run_trial(arms: Mapping[str, Shown], run: RunPopulation, size: int) -> Trial:
    """Show every ad to the same `size` people."""
    return Trial({name: run(arm.ad, arm.platform, start=0, size=size) for name, arm in arms.items()}, (), size)


def run_sequential(
    arms: Mapping[str, Shown], run: RunPopulation, size: int, *, batch: int, alpha: float, indifference: float = 0.0
) -> Trial:
    """The same, `batch` people at a time, until decided or all `size` were asked; see `statistics/sequential.py`.
    Raises BadSettings for a weighted population, as rows must count alike.
    """
    test = SequentialTest(list(arms), alpha=alpha, planned_rows=size, indifference=indifference)
    parts: dict[str, list[pa.Table]] = {name: [] for name in arms}
    looks: list[Look] = []
    for start in range(0, size, batch):
        people = min(batch, size - start)
        for name, arm in arms.items():
            parts[name].append(run(arm.ad, arm.platform, start=start, size=people))
        latest = {name: tables[-1] for name, tables in parts.items()}
        if any(weights_of(table) is not None for table in latest.values()):
            raise BadSettings("a weighted population cannot be tested batch by batch: leave --sequential out")
        looks.append(test.add(pair_rows(latest).chances))
        if looks[-1].decided:
            break
    return Trial({name: pa.concat_tables(tables) for name, tables in parts.items()}, tuple(looks), size)
