"""HTTP client of the driver's control routes."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import msgspec

from serve_app.errors import BadSettings, JobConflict, JobNotFound, ServeAppError, ServerUnavailable
from serve_app.schema import Outcome, ReplicaInfo
from serve_app.settings import api_key_headers
from serve_app.spec import JobSpec, JobStatus

POLL_S = 0.5
# A restarted driver answers within this time.
PATIENCE_S = 60.0
ERRORS: dict[int, type[ServeAppError]] = {404: JobNotFound, 409: JobConflict, 400: BadSettings, 422: BadSettings}


class PopulationClient:
    """Submits populations and follows them. `base_url` is the server's, without `/v1`."""

    def __init__(self, base_url: str, *, timeout_s: float = 60.0) -> None:
        self.base_url = base_url.rstrip("/").removesuffix("/v1")
        self._http = httpx.Client(
            base_url=f"{self.base_url}/v1/populations", timeout=timeout_s, headers=api_key_headers()
        )

    def ping(self) -> None:
        """Raises ServerUnavailable at once if nobody answers."""
        try:
            self._http.get(f"{self.base_url}/-/healthz")
        except httpx.HTTPError as error:
            raise self._unavailable(error) from error

    def submit(self, spec: JobSpec) -> str:
        """Queue a population; returns the job's id. Raises BadSettings that names the field."""
        return str(self._call("POST", "/", content=_to_json(spec), headers=_JSON)["id"])

    def upload(self, spec: JobSpec) -> str:
        """Queue the rows of a local file, the spec's `source`; returns the job's id."""
        path = Path(spec.source)
        try:
            with open(path, "rb") as file:
                form = {"data": {"spec": _to_json(spec)}, "files": {"file": (path.name, file)}}
                return str(self._call("POST", "/", timeout=None, **form)["id"])
        except OSError as error:
            raise BadSettings(f"{path}: {error.strerror or error}") from error

    def replicas(self) -> list[ReplicaInfo]:
        return msgspec.convert(self._call("GET", "/replicas")["data"], list[ReplicaInfo])

    def list(self) -> list[JobStatus]:
        """Newest first."""
        return [JobStatus.model_validate(job) for job in self._call("GET", "/")["data"]]

    def status(self, job_id: str) -> JobStatus:
        """Raises JobNotFound."""
        return JobStatus.model_validate(self._call("GET", f"/{job_id}"))

    def resume(self, job_id: str) -> JobStatus:
        """Run rows without an outcome. Raises JobNotFound."""
        return JobStatus.model_validate(self._call("POST", f"/{job_id}/resume"))

    def cancel(self, job_id: str) -> JobStatus:
        """Outcomes stay. Raises JobNotFound, or JobConflict if it is not running."""
        return JobStatus.model_validate(self._call("POST", f"/{job_id}/cancel"))

    def delete(self, job_id: str) -> None:
        """Remove job and results. Raises JobNotFound, or JobConflict while it runs."""
        self._call("DELETE", f"/{job_id}")

    def wait(self, job_id: str, on_status: Callable[[JobStatus], None] = lambda status: None) -> JobStatus:
        """Follow the job to its end; returns the last status."""
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
                if not status.state.active:
                    return status
            time.sleep(POLL_S)

    def outcomes(self, job_id: str, *, after: int = 0) -> Iterator[Outcome]:
        """Outcomes after the first `after`, also while the job runs."""
        rest = b""
        for block in self.results(job_id, "jsonl", after=after):
            *lines, rest = (rest + block).split(b"\n")
            yield from map(Outcome.from_json, lines)

    def results(self, job_id: str, form: str = "jsonl", *, after: int = 0, inputs: bool = False) -> Iterator[bytes]:
        """The outcomes as JSONL, CSV or Parquet bytes; with `inputs` beside the data's own columns."""
        asked: dict[str, str | int | bool] = {"format": form, "after": after, "inputs": inputs}
        try:
            with self._http.stream("GET", f"/{job_id}/results", params=asked) as response:
                if response.is_error:
                    response.read()
                    raise _error(response)
                yield from response.iter_bytes()
        except httpx.HTTPError as error:
            raise self._unavailable(error) from error

    def _call(self, method: str, path: str, **request: Any) -> dict[str, Any]:
        try:
            response = self._http.request(method, path, **request)
        except httpx.HTTPError as error:
            raise self._unavailable(error) from error
        if response.is_error:
            raise _error(response)
        body: dict[str, Any] = response.json() if response.content else {}
        return body

    def _unavailable(self, error: httpx.HTTPError) -> ServerUnavailable:
        if "CERTIFICATE_VERIFY_FAILED" in str(error):
            advice = "give its certificate, or that of who signed it, by the variable SSL_CERT_FILE"
        else:
            advice = "start it with `serve-app up`, or give --base-url"
        return ServerUnavailable(f"{self.base_url} does not answer ({error}): {advice}")


def _to_json(spec: JobSpec) -> str:
    """Only explicit fields, since the server has its own defaults."""
    return spec.model_dump_json(exclude_unset=True)


_JSON = {"content-type": "application/json"}


def _error(response: httpx.Response) -> Exception:
    try:
        body = response.json()
        message = body["error"]["message"] if "error" in body else str(body["detail"])
    except (ValueError, KeyError, TypeError):
        message = response.text[:300]
    return ERRORS.get(response.status_code, ServerUnavailable)(message or f"HTTP {response.status_code}")
