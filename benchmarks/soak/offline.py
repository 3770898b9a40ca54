"""Population work beside the online clients: jobs of rows and of files, batches, cancels, downloads, deletions."""

from __future__ import annotations

import asyncio
import json
import random
from typing import Any

import aiohttp

from benchmarks.load import prompts
from benchmarks.soak.online import CHAT
from benchmarks.soak.site import Site
from benchmarks.soak.tally import Tally, Unexpected

ROWS = 60
POLL_S = 0.5
LABELS = ["Yes", "No"]
FORMATS = ("jsonl", "csv", "parquet")


class OfflineClient:
    """Submits one kind of work after another and checks that each row was answered. Leaves every other job, done."""

    def __init__(self, site: Site, tally: Tally, session: aiohttp.ClientSession, number: int) -> None:
        self._site = site
        self._tally = tally
        self._http = session
        self._draw = random.Random(f"offline-{number}")

    async def run(self, until: asyncio.Event) -> None:
        kinds = {
            "population": self.scored,
            "upload": self.uploaded,
            "cancelled": self.cancelled,
            "batch": self.batch,
            "batch cancelled": self.batch_cancelled,
            "events left": self.events_left,
        }
        while not until.is_set():
            kind = self._draw.choice(list(kinds))
            try:
                await kinds[kind]()
            except Exception as error:  # whatever it is, it is counted
                self._tally.fail(kind, error)
            self._tally.done[kind] += 1

    async def scored(self) -> None:
        spec = {"rows": self._rows(), "labels": LABELS, "workload": "soak/v1"}
        await self._finish((await self._call("POST", "/v1/populations", json=spec))["id"])

    async def uploaded(self) -> None:
        """A CSV file, and generated text."""
        lines = ["custom_id,words", *(f"{row['custom_id']},{row['prompt']}" for row in self._rows())]
        spec = {"prompt": "Say a word about: {words}", "max_tokens": 4, "workload": "soak/v1"}
        form = aiohttp.FormData({"spec": json.dumps(spec)})
        form.add_field("file", "\n".join(lines).encode(), filename="rows.csv")
        await self._finish((await self._call("POST", "/v1/populations", data=form))["id"])

    async def cancelled(self) -> None:
        """Cancelled in the middle, then resumed to its end."""
        spec = {"rows": self._rows(), "max_tokens": 8, "workload": "soak/v1"}
        job = (await self._call("POST", "/v1/populations", json=spec))["id"]
        await asyncio.sleep(self._draw.uniform(0, 3))
        try:
            await self._call("POST", f"/v1/populations/{job}/cancel")
            await self._call("POST", f"/v1/populations/{job}/resume")
        except Unexpected as error:
            if "409" not in str(error):  # it was done before
                raise
        await self._finish(job)

    async def batch(self) -> None:
        batch = await self._start_batch()
        while batch["status"] not in ("completed", "failed", "expired", "cancelled"):
            await asyncio.sleep(POLL_S)
            batch = await self._call("GET", f"/v1/batches/{batch['id']}")
        if batch["status"] != "completed" or batch["request_counts"]["completed"] != ROWS:
            raise Unexpected(json.dumps(batch))
        content = await self._read(f"/v1/files/{batch['output_file_id']}/content")
        _check_lines(content)
        self._tally.rows += ROWS
        for file in (batch["input_file_id"], batch["output_file_id"]):
            await self._call("DELETE", f"/v1/files/{file}")

    async def batch_cancelled(self) -> None:
        batch = await self._start_batch()
        await asyncio.sleep(self._draw.uniform(0, 2))
        try:
            await self._call("POST", f"/v1/batches/{batch['id']}/cancel")
        except Unexpected as error:
            if "409" not in str(error):  # it was done before
                raise
        while (await self._call("GET", f"/v1/batches/{batch['id']}"))["status"] not in ("completed", "cancelled"):
            await asyncio.sleep(POLL_S)

    async def events_left(self) -> None:
        """Followed by events until its watcher leaves."""
        spec = {"rows": self._rows(), "labels": LABELS, "workload": "soak/v1"}
        job = (await self._call("POST", "/v1/populations", json=spec))["id"]
        url = f"{self._site.base_url}/v1/populations/{job}/events"
        async with self._http.get(url, headers=self._site.headers("app")) as response:
            await response.content.readany()
            response.close()
        await self._finish(job)

    # --- how ---

    def _rows(self) -> list[dict[str, str]]:
        texts = prompts(ROWS, str(self._draw.random()))
        return [{"custom_id": f"row-{number}", "prompt": text} for number, text in enumerate(texts)]

    async def _start_batch(self) -> dict[str, Any]:
        lines = [
            {
                "custom_id": row["custom_id"],
                "method": "POST",
                "url": CHAT,
                "body": {
                    "model": self._site.model,
                    "messages": [{"role": "user", "content": row["prompt"]}],
                    "max_tokens": 4,
                },
            }
            for row in self._rows()
        ]
        form = aiohttp.FormData({"purpose": "batch"})
        form.add_field("file", "\n".join(map(json.dumps, lines)).encode(), filename="batch.jsonl")
        file = await self._call("POST", "/v1/files", data=form)
        asked = {"input_file_id": file["id"], "endpoint": CHAT, "completion_window": "24h"}
        batch: dict[str, Any] = await self._call("POST", "/v1/batches", json=asked)
        return batch

    async def _finish(self, job: str) -> None:
        """To its end, with all rows in each format; then deleted, or left."""
        while True:
            status = await self._call("GET", f"/v1/populations/{job}")
            if status["state"] not in ("queued", "running"):
                break
            await asyncio.sleep(POLL_S)
        if status["state"] != "completed" or status["ok"] != ROWS:
            raise Unexpected(json.dumps(status))
        for form in FORMATS:
            await self._read(f"/v1/populations/{job}/results?format={form}")
        lines = await self._read(f"/v1/populations/{job}/results?inputs=true")
        _check_lines(lines)
        self._tally.rows += ROWS
        if self._draw.random() < 0.5:
            await self._call("DELETE", f"/v1/populations/{job}")

    async def _call(self, method: str, path: str, **options: Any) -> Any:
        url, headers = self._site.base_url + path, self._site.headers("app")
        async with self._http.request(method, url, headers=headers, **options) as response:
            text = await response.text()
        if not response.ok:
            raise Unexpected(f"{method} {path}: {response.status}: {text[:300]}")
        return json.loads(text) if text else {}

    async def _read(self, path: str) -> bytes:
        async with self._http.get(self._site.base_url + path, headers=self._site.headers("app")) as response:
            body = await response.read()
        if not response.ok:
            raise Unexpected(f"{path}: {response.status}: {body[:300]!r}")
        return body


def _check_lines(content: bytes) -> None:
    if (lines := len(content.splitlines())) != ROWS:
        raise Unexpected(f"{lines} lines of {ROWS}")
