"""Sentiment: the probability that a product review is positive."""

import csv
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from serve_app.client.populations import PopulationClient
from serve_app.schema import Outcome, Row
from serve_app.spec import JobSpec

WORKLOAD = "sentiment/v1"  # part of each row's identity: change it with the prompt's wording
LABELS = ("Yes", "No")  # each must be one token of the model


@dataclass(frozen=True)
class Sentiment:
    review: str
    positive: float | None  # None where there is no answer: never a default
    error: str | None


def rows(path: Path) -> Iterator[Row]:
    with open(path, newline="") as file:
        for record in csv.DictReader(file):
            if not record["text"]:
                yield Row(record["id"], error="the review is empty")  # its outcome is `invalid`
                continue
            # What all rows share goes first, so that the prefix cache has it.
            question = f"Is this product review positive? Answer Yes or No.\n\n{record['text']}"
            yield Row(record["id"], ({"role": "user", "content": question},))


def read(outcome: Outcome) -> Sentiment:
    if outcome.status != "ok":
        return Sentiment(outcome.custom_id, None, outcome.error)
    yes, no = (math.exp(outcome.value["logprobs"][label]) for label in LABELS)
    return Sentiment(outcome.custom_id, yes / (yes + no), None)


def run(path: Path, client: PopulationClient) -> list[Sentiment]:
    job_id = client.submit(JobSpec.of(rows(path), workload=WORKLOAD, labels=LABELS))
    client.wait(job_id)
    return [read(outcome) for outcome in client.outcomes(job_id)]
