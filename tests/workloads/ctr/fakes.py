"""A server in the caller's own process, behind the real client: rows go through the driver's own reading, answers come
from a function."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import httpx
import msgspec

from serve_app.client.populations import PopulationClient
from serve_app.driver.sources.files import write_rows
from serve_app.driver.sources.source import open_source
from serve_app.schema import Outcome, Row
from serve_app.spec import JobSpec

# (system message, user message) -> value of the outcome
Model = Callable[[str, str], dict[str, Any]]


class FakeClient(PopulationClient):
    """`spec` and `asked` are of the last job, `specs` all; `told` are further fields of its status."""

    def __init__(self, model: Model) -> None:
        super().__init__("http://fake")
        self._http = httpx.Client(base_url="http://fake", transport=httpx.MockTransport(self._answer))
        self._model = model
        self.spec = JobSpec(rows=({"custom_id": "none"},))
        self.asked: list[Row] = []
        self.specs: list[JobSpec] = []
        self.told: dict[str, Any] = {}

    def _answer(self, request: httpx.Request) -> httpx.Response:
        if request.method == "POST" and request.url.path.endswith("/resume"):
            return httpx.Response(200, json={"id": "job", "state": "running"})
        if request.method == "POST":
            self.spec = JobSpec.model_validate(msgspec.json.decode(request.content))
            self.specs.append(self.spec)
            self.asked = _rows(self.spec)
            return httpx.Response(200, json={"id": "job"})
        if request.url.path.endswith("/results"):
            return httpx.Response(200, content=b"".join(self._outcome(row).to_json() + b"\n" for row in self.asked))
        status = {
            "id": "job",
            "state": "completed",
            "total": len(self.asked),
            "ok": sum(row.error is None for row in self.asked),
            "metadata": self.spec.metadata,
            "model": "m",
        }
        return httpx.Response(200, json=status | self.told)

    def _outcome(self, row: Row) -> Outcome:
        if row.error is not None:
            return outcome(row.custom_id, None, status="invalid", error=row.error)
        value = self._model(row.messages[0]["content"], row.messages[1]["content"])
        return outcome(row.custom_id, value, simulated=bool(self.told.get("simulated")))


def _rows(spec: JobSpec) -> list[Row]:
    """As the driver reads them: rows of a request by way of a file."""
    with TemporaryDirectory() as folder:
        if spec.rows:
            with open(Path(folder) / "rows.jsonl", "wb") as file:
                write_rows(spec.rows, file)
            spec = spec.model_copy(update={"rows": (), "source": "job:rows.jsonl"})
        return list(open_source(spec, folder_url=folder).rows())


def outcome(custom_id: str, value: dict[str, Any] | None, **changed: Any) -> Outcome:
    """An answered row's outcome, but for what is `changed`."""
    known = Outcome(custom_id, "h", "ok", value, None, 1, "r", "m", "v", False, 100, 64, 1, 5.0, "2026-01-01")
    return msgspec.structs.replace(known, **changed)


def scored(odds: float, click: str = "Yes", ignore: str = "No", mass: float = 0.8) -> dict[str, Any]:
    """An outcome's value in which `click` has these log-odds over `ignore`."""
    p = 1 / (1 + math.exp(-odds))
    return {"logprobs": {click: math.log(mass * p), ignore: math.log(mass * (1 - p))}, "mass": mass}
