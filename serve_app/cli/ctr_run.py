"""Populations for `serve-app ctr compare` and `calibrate`: every ad is shown to the same people on a running server."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from serve_app.errors import ServerUnavailable

if TYPE_CHECKING:
    import pyarrow as pa

    from serve_app.schema import Outcome, Row
    from serve_app.workloads.ctr.trial import RunPopulation


class Client(Protocol):
    """The part of PopulationClient that is used here."""

    def submit(self, rows: Sequence[Row], **request: Any) -> str: ...
    def wait(self, job_id: str, on_status: Callable[[dict[str, Any]], None]) -> dict[str, Any]: ...
    def outcomes(self, job_id: str) -> Iterator[Outcome]: ...


def population_run(
    client: Client, *, seed: int, on_status: Callable[[dict[str, Any]], None] = lambda status: None
) -> RunPopulation:
    """What shows an ad to people of the identity bank, one job a call.

    The call raises BadSettings for an empty ad or an unknown platform, ServerUnavailable for a job that did not end.
    """
    from itertools import islice

    from serve_app.workloads.ctr.predict import table
    from serve_app.workloads.ctr.profiles import draw_profiles
    from serve_app.workloads.ctr.prompts import NO, WORKLOAD, YES, render_rows

    def run(ad: str, platform: str, *, start: int, size: int) -> pa.Table:
        people = list(islice(draw_profiles(seed, start), size))
        asked = {"ad": ad, "platform": platform, "seed": seed, "start": start, "size": size}
        rows = render_rows(people, ad, platform)
        job_id = client.submit(rows, workload=WORKLOAD, labels=[YES, NO], metadata=asked)
        status = client.wait(job_id, on_status)
        if status["state"] != "completed":
            raise ServerUnavailable(f"job {job_id} ended {status['state']}: {status['message'] or 'see its results'}")
        return table(people, client.outcomes(job_id))

    return run
