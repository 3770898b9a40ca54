"""HTTP client of the driver's control routes."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from typing import Any

import httpx

from serve_app.errors import BadSettings, JobConflict, JobNotFound, ServerUnavailable
from serve_app.schema import Outcome, Row

RUNNING = ("queued", "running")
POLL_S = 0.5
# A driver that restarts answers again within this time. It does not go on with jobs by itself: `wait` then
# returns the state "interrupted", and `resume` continues.
PATIENCE_S = 60.0
ERRORS = {404: JobNotFound, 409: JobConflict, 400: BadSettings, 422: BadSettings}


class PopulationClient:
    """Submits populations and follows them. `base_url` is the server's, without `/v1`."""

    def __init__(self, base_url: str, *, timeout_s: float = 60.0) -> None:
        self.base_url = base_url.rstrip("/").removesuffix("/v1")
        self._http = httpx.Client(base_url=f"{self.base_url}/v1/populations", timeout=timeout_s)

    def submit(self, rows: Sequence[Row], **request: Any) -> str:
        """Queue rows; the job's id. `request` holds JobSpec's other fields (workload, labels, max_tokens, …)."""
        body = {"rows": [asdict(row) for row in rows], **request}
        return str(self._call("POST", "/", json=body)["id"])

    def status(self, job_id: str) -> dict[str, Any]:
        """The job's state, counts and figures. Raises JobNotFound."""
        return self._call("GET", f"/{job_id}")

    def resume(self, job_id: str) -> dict[str, Any]:
        """Run what has no outcome. Raises JobNotFound."""
        return self._call("POST", f"/{job_id}/resume")

    def wait(self, job_id: str, on_status: Callable[[dict[str, Any]], None] = lambda status: None) -> dict[str, Any]:
        """Follow the job to its end, whatever that is; the last status."""
        last_answer = time.monotonic()
        while True:
            try:
                status = self.status(job_id)
                last_answer = time.monotonic()
            except ServerUnavailable:
                if time.monotonic() - last_answer > PATIENCE_S:
                    raise
            else:
                on_status(status)
                if status["state"] not in RUNNING:
                    return status
            time.sleep(POLL_S)

    def outcomes(self, job_id: str) -> Iterator[Outcome]:
        """Committed outcomes, also while the job runs."""
        try:
            with self._http.stream("GET", f"/{job_id}/results") as response:
                if response.is_error:
                    response.read()
                    raise _error(response)
                for line in response.iter_lines():
                    yield Outcome.from_json(line)
        except httpx.HTTPError as error:
            raise self._unavailable(error) from error

    def _call(self, method: str, path: str, **request: Any) -> dict[str, Any]:
        try:
            response = self._http.request(method, path, **request)
        except httpx.HTTPError as error:
            raise self._unavailable(error) from error
        if response.is_error:
            raise _error(response)
        body: dict[str, Any] = response.json()
        return body

    def _unavailable(self, error: httpx.HTTPError) -> ServerUnavailable:
        return ServerUnavailable(
            f"{self.base_url} does not answer ({error}): start it with `make serve`, or give --base-url"
        )


def _error(response: httpx.Response) -> Exception:
    try:
        body = response.json()
        message = body["error"]["message"] if "error" in body else str(body["detail"])
    except (ValueError, KeyError, TypeError):
        message = response.text[:300]
    return ERRORS.get(response.status_code, ServerUnavailable)(message or f"HTTP {response.status_code}")
