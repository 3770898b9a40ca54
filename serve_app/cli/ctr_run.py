"""Populations for `serve-app ctr compare` and `calibrate`: every ad is shown to the same people on a running server."""

from __future__ import annotations

from collections.abc import Callable
from itertools import islice
from typing import TYPE_CHECKING

from serve_app.errors import ServerUnavailable

if TYPE_CHECKING:
    import pyarrow as pa

    from serve_app.spec import JobStatus
    from serve_app.workloads.ctr.study import Client
    from serve_app.workloads.ctr.trial import RunPopulation


def population_run(
    client: Client, *, seed: int, on_status: Callable[[JobStatus], None] = lambda status: None
) -> RunPopulation:
    """What shows an ad to people of the default identity bank, one job a call.

    The call raises BadSettings for an empty ad or an unknown platform, ServerUnavailable for a job that did not end.
    """
    from serve_app.spec import JobSpec, JobState
    from serve_app.workloads.ctr.asking.answers import read_answers, table
    from serve_app.workloads.ctr.asking.prompts import Question
    from serve_app.workloads.ctr.people.bank import load_bank
    from serve_app.workloads.ctr.people.profiles import draw_profiles

    bank = load_bank("default")

    def run(ad: str, platform: str, *, start: int, size: int) -> pa.Table:
        question = Question(ad, platform)
        people = list(islice(draw_profiles(seed, start, bank), size))
        asked = {"ad": ad, "platform": platform, "seed": seed, "start": start, "size": size}
        rows = [row for person in people for row in question.rows(person)]
        job_id = client.submit(JobSpec.of(rows, metadata=asked, **question.job()))
        status = client.wait(job_id, on_status)
        if status.state is not JobState.COMPLETED:
            raise ServerUnavailable(f"job {job_id} ended {status.state}: {status.message or 'see its results'}")
        return table(read_answers(question, people, client.outcomes(job_id)))

    return run
