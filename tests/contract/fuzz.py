"""Requests made up by schemathesis from a server's own OpenAPI documents, valid and invalid, until there are enough.

Knows which documents the server has, which routes are left out, and what an answer of the server's fault is. What is
asked for is shaped by `steer.py` and bounded by `clamp.py`.
"""

from __future__ import annotations

import random
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any
from urllib.parse import quote

import httpx

from tests.contract.clamp import clamp
from tests.contract.steer import steer
from tests.contract.tally import Tally

# Routes of administrators, if they are mounted at all: what they do is no answer to a client.
SKIPPED = {
    "/scale_elastic_ep": "changes the number of engines, and drains them first",
    "/start_profile": "writes traces to disk",
    "/stop_profile": "writes traces to disk",
    "/v1/load_lora_adapter": "reads any folder of the host",
    "/v1/unload_lora_adapter": "takes an adapter away from others",
}
# Examples and coverage are the same in each round, the others are not.
REPEATED_PHASES = ("fuzzing", "stateful")
PHASES = ("examples", "coverage", *REPEATED_PHASES)
# All requests whose method the document does not have for their path.
OTHER_METHODS = "(other methods)"
# Of each route in a round.
EXAMPLES = 100
POPULATIONS = "/v1/populations"
# Applications of their own, and their shares of all requests; the rest goes to the replicas.
SHARES = {POPULATIONS: 0.1, "/v1/files": 0.05, "/v1/batches": 0.05}
# Jobs that are left for the routes of one job to find; older ones are deleted.
KEPT_JOBS = 4
REQUEST_TIMEOUT_S = 120.0
DELETE_TIMEOUT_S = 60.0


def fuzz(base_url: str, *, requests: int, seed: int, workers: int, tally: Tally) -> None:
    """Send `requests` requests, and what is under way then, over all routes of the server; count them in `tally`.

    The same seed makes up the same requests; how workers interleave them is not fixed. Jobs that are submitted are
    deleted again. Raises RuntimeError when a document yields no request.
    """
    end = tally.total + requests
    for prefix, share in SHARES.items():
        if httpx.get(f"{base_url}{prefix}/openapi.json", timeout=30).status_code == 200:
            with Jobs(base_url, seed) if prefix == POPULATIONS else nullcontext() as jobs:
                Document(base_url, prefix, tally, jobs).send_until(tally.total + int(requests * share), seed, workers)
    Document(base_url, "", tally).send_until(end, seed, workers)


class Document:
    """One OpenAPI document, whose paths are below `prefix`."""

    def __init__(self, base_url: str, prefix: str, tally: Tally, jobs: Jobs | None = None) -> None:
        self._url = base_url + prefix
        self._prefix = prefix
        self._model = served_model(base_url)
        self._tally = tally
        self._jobs = jobs
        self._enough: Callable[[], None] = lambda: None

    def send_until(self, total: int, seed: int, workers: int) -> None:
        """Run rounds, each with the next seed, until the tally has `total` answers."""
        phases: tuple[str, ...] = PHASES
        while (before := self._tally.total) < total:
            with self._hooks(seed):
                self._round(total, self._config(seed, workers, phases))
            if self._tally.total == before:
                raise RuntimeError(f"no request could be made up from {self._url}/openapi.json")
            seed, phases = seed + 1, REPEATED_PHASES

    def _round(self, total: int, config: dict[str, Any]) -> None:
        import schemathesis
        from schemathesis.engine import events, from_schema

        schema = schemathesis.openapi.from_url(
            f"{self._url}/openapi.json", config=schemathesis.Config.from_dict(config)
        )
        stream = from_schema(schema.exclude(path=list(SKIPPED))).execute()
        # Said by the hooks, request by request: the next event may be a route's thousands of cases away.
        self._enough = lambda: stream.stop() if self._tally.total >= total else None
        for event in stream:
            if isinstance(event, events.FatalError):
                raise event.exception

    def _config(self, seed: int, workers: int, phases: tuple[str, ...]) -> dict[str, Any]:
        return {
            "seed": seed,
            "workers": workers,
            "base-url": self._url,
            "request-timeout": REQUEST_TIMEOUT_S,
            # A failure is counted and the next request made: no shrinking, which would ask thousands of times.
            "continue-on-failure": True,
            "generation": {"mode": "all", "max-examples": EXAMPLES, "no-shrink": True, "database": "none"},
            "phases": {phase: {"enabled": phase in phases} for phase in PHASES},
            "checks": {"enabled": False, "not_a_server_error": {"enabled": True}},
            "cache": {"enabled": False},
            # It would hide `max_tokens` as if it were a secret, and the command would repeat nothing.
            "output": {"sanitization": {"enabled": False}},
        }

    @contextmanager
    def _hooks(self, seed: int) -> Iterator[None]:
        """Bound each request before it is sent, and count what comes back; schemathesis calls global hooks only."""
        from schemathesis import hooks

        def before_call(context: Any, case: Any, kwargs: Any) -> None:
            path = self._prefix + case.path
            case.body = clamp(path, steer(path, case.body, self._model, seed))
            if self._jobs is not None:
                self._jobs.put_one(case.path_parameters)

        def after_call(context: Any, case: Any, response: Any) -> None:
            self._tally.add(
                self._route(case), response.status_code, lambda: (case.as_curl_command(), response.text[:500])
            )
            if self._jobs is not None and response.status_code == 201:
                self._jobs.keep(response.json()["id"])
            self._enough()

        def after_network_error(context: Any, case: Any, request: Any) -> None:
            self._tally.add(self._route(case), None, lambda: (case.as_curl_command(), "no answer"))

        ours = (before_call, after_call, after_network_error)
        for hook in ours:
            hooks.hook(hook)
        try:
            yield
        finally:
            for hook in ours:
                hooks.unregister(hook)

    def _route(self, case: Any) -> str:
        if case.method.upper() != case.operation.method.upper():
            return OTHER_METHODS
        return f"{case.method.upper()} {self._prefix}{case.path}"


def served_model(base_url: str) -> str:
    """The first model's name, or nothing if the server has no models."""
    answer = httpx.get(f"{base_url}/v1/models", timeout=30)
    return str(answer.json()["data"][0]["id"]) if answer.status_code == 200 else ""


class Jobs:
    """The jobs that fuzzing submitted: a few are kept for other routes to find, and none is left at the end."""

    def __init__(self, base_url: str, seed: int) -> None:
        self._http = httpx.Client(base_url=base_url + POPULATIONS, timeout=60)
        self._kept: deque[str] = deque()
        self._random = random.Random(seed)
        self._lock = threading.Lock()

    def __enter__(self) -> Jobs:
        return self

    def __exit__(self, *error: object) -> None:
        while self._kept:
            self._delete(self._kept.popleft())
        self._http.close()

    def put_one(self, path_parameters: dict[str, Any]) -> None:
        """Let every other request for a job be for one that exists."""
        with self._lock:
            if self._kept and "job_id" in path_parameters and self._random.random() < 0.5:
                path_parameters["job_id"] = self._random.choice(self._kept)

    def keep(self, job_id: str) -> None:
        """Remember a new job, and delete the oldest if there are too many."""
        with self._lock:
            self._kept.append(job_id)
            old = [self._kept.popleft()] if len(self._kept) > KEPT_JOBS else []
        for one in old:
            self._delete(one)

    def _delete(self, job_id: str) -> None:
        path = f"/{quote(job_id, safe='')}"
        deadline = time.monotonic() + DELETE_TIMEOUT_S
        while True:
            self._http.post(f"{path}/cancel")
            answer = self._http.delete(path)
            if answer.status_code in (204, 404):  # 404: a made-up request deleted it
                return
            if answer.status_code != 409 or time.monotonic() > deadline:  # 409: it is still running
                raise RuntimeError(f"job {job_id} could not be deleted: {answer.status_code} {answer.text}")
            time.sleep(0.1)
