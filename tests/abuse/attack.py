"""Hostile requests, one after the other, and what is looked at after each and after every 500."""

from __future__ import annotations

import asyncio
import json
import traceback
from contextlib import suppress
from typing import Any

from tests.abuse.asking import Answer, Request, ask
from tests.abuse.junk import Junk
from tests.abuse.ledger import Ledger
from tests.abuse.requests import CHAT, Known, hostile_request
from tests.abuse.site import CANARY, MODEL, Site

# Inputs between two looks at the whole.
ROUND = 500
ERROR = {"message", "type", "param", "code"}
DONE_S = 20.0


async def attack(site: Site, ledger: Ledger, *, seed: int, inputs: int, first: int = 0) -> None:
    """Send requests `first` to `first + inputs` of that seed."""
    known = Known()
    before = site.outside()
    for number in range(first, first + inputs):
        junk = Junk(f"{seed}:request:{number}", str(site.folder), site.trap.port)
        route, request = hostile_request(junk, known)
        ledger.routes[route] += 1
        answer = await ask(site.app, request)
        if answer.status and answer.status < 300:
            with suppress(ValueError):  # no JSON
                known.note(json.loads(answer.body))
        for kind, detail in wrong_with(request, answer):
            ledger.fail(route, kind, f"request:{number}", f"{request}\n{detail}")
        if (number + 1) % ROUND == 0 or number + 1 == first + inputs:
            await look(site, ledger, before, f"request:{number}")


def wrong_with(request: Request, answer: Answer) -> list[tuple[str, str]]:
    """(kind, detail) of each thing that the answer should not be."""
    if isinstance(answer.error, TimeoutError):
        return [("slow", f"no end after {answer.seconds:.1f} s, status {answer.status}")]
    if answer.error is not None:
        return [("crash", "".join(traceback.format_exception(answer.error))[-1500:])]
    if answer.status is None:
        return [] if request.cut is not None else [("crash", "no answer")]
    found = []
    if answer.status >= 500:
        found.append(("5xx", f"{answer.status} {answer.body[:500]!r}"))
    if CANARY.encode() in answer.body:
        found.append(("leak", repr(answer.body[:500])))
    if 400 <= answer.status < 500 and request.method != "HEAD" and not _is_error(answer.body):
        found.append(("shape", f"{answer.status} {answer.body[:300]!r}"))
    if any(b"\r" in part or b"\n" in part for header in answer.headers for part in header):
        found.append(("shape", f"a header of several lines: {answer.headers}"))
    return found


def _is_error(body: bytes) -> bool:
    try:
        error = json.loads(body)["error"]
        return set(error) == ERROR and isinstance(error["message"], str)
    except (ValueError, KeyError, TypeError):
        return False


async def look(site: Site, ledger: Ledger, before: dict[str, bytes], case: str) -> None:
    """The server answers good requests, and nothing happened outside; then jobs and files are deleted."""
    for problem in await still_answers(site):
        ledger.fail("good requests", "dead", case, problem)
    if (now := site.outside()) != before:
        changed = sorted({*before.items()} ^ {*now.items()})
        ledger.fail("files", "outside", case, changed[:5])
        before.clear()
        before.update(now)
    if site.trap.caught:
        ledger.fail("addresses", "connected", case, f"{site.trap.caught} connections to a loopback port")
        site.trap.caught = 0
    for path in ("/v1/files", "/v1/populations"):
        for one in (await ask(site.app, Request("GET", path))).json()["data"]:
            where = f"{path}/{one['id']}"
            if path.endswith("populations"):
                await ask(site.app, Request("POST", f"{where}/cancel"))
            answer = await ask(site.app, Request("DELETE", where))
            if answer.status not in (200, 204, 404, 409):
                ledger.fail("DELETE", "5xx", case, f"{where}: {answer.status} {answer.body[:300]!r} {answer.error!r}")


async def still_answers(site: Site) -> list[str]:
    found = []
    chat = {"model": MODEL, "messages": CHAT, "max_tokens": 2}
    for path, body in (
        ("/v1/chat/completions", chat),
        ("/v1/populations", {"rows": [{"prompt": "x"}], "max_tokens": 2}),
    ):
        answer = await ask(site.app, Request("POST", path, body=json.dumps(body).encode()))
        if answer.status not in (200, 201):
            found.append(f"POST {path}: {answer.status} {answer.body[:300]!r} {answer.error!r}")
    if not found and (state := await _ended(site, answer.json()["id"])) != "completed":
        found.append(f"a job of one row is {state}")
    return found


async def _ended(site: Site, job_id: str) -> Any:
    try:
        async with asyncio.timeout(DONE_S):
            while True:
                status = (await ask(site.app, Request("GET", f"/v1/populations/{job_id}"))).json()
                if status["state"] not in ("queued", "running"):
                    return status["state"]
                await asyncio.sleep(0.02)
    except TimeoutError:
        return f"{status['state']} after {DONE_S:g} s"
