"""Completes the configuration that Ray Serve 2.60 writes for HAProxy (`ray/serve/_private/haproxy_templates.py`).

Serve writes it again before each start, that is, whenever a replica comes or goes. Changed are:

    global                 the admin socket is this user's alone; `sessions.lua` is loaded
    prometheus, stats      dropped: they listen on every address, on fixed ports that a second cluster needs too
    http-server-close      each request has its own connection to the replica, which takes 50 µs there: one that stops
                           closes connections after their answers, and a request that is sent meanwhile would be lost
    errorfile              for 502 to 504 OpenAI's error with status 503, not a text with 500
    http_frontend          finds a session's replica, which its backend uses

A configuration of another form is an error: half of these changes would be a hole.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from serve_app.openai.errors import unavailable
from serve_app.settings import REPLICA_DEPLOYMENT, ROUTING_ENV, RoutingSettings

SCRIPT = Path(__file__).with_name("sessions.lua")
DROPPED = ("frontend prometheus", "listen stats")
DONE = "# completed by serve_app\n"
FRONTEND = "frontend http_frontend"
RULES = "    # Static routing based on path prefixes"
# Serve's variable and default.
SESSION_HEADER = os.environ.get("RAY_SERVE_SESSION_ID_HEADER_KEY", "x-session-id").lower()
# Serve names replicas SERVE_REPLICA::app#deployment#id, and makes that safe for HAProxy.
_replica = re.compile(rf"\s+server (SERVE_REPLICA_\S+-{REPLICA_DEPLOYMENT}-\w+) ").match


@dataclass(frozen=True, slots=True)
class Section:
    """A line that begins in the first column, and the lines below it."""

    title: str
    lines: list[str] = field(default_factory=list)

    @property
    def replicas(self) -> list[str]:
        """A backend's servers that are replicas of an engine."""
        return [found[1] for line in self.lines if (found := _replica(line))]

    @property
    def text(self) -> str:
        return "".join(f"{line}\n" for line in (self.title, *self.lines))


class Sessions(msgspec.Struct, frozen=True):
    """What `sessions.lua` knows of a backend."""

    servers: list[str]
    routing: RoutingSettings


def complete(path: Path) -> None:
    """Rewrite Serve's file once, with others beside it. Raises ValueError unless it has the form of Ray 2.60's."""
    text = path.read_text()
    if text.startswith(DONE):
        return
    sections = parse(text)
    settings = read_routing(os.environ)
    backends = {section.title.removeprefix("backend "): section.replicas for section in sections}
    sessions = {
        name: Sessions(servers, routing)
        for name, servers in backends.items()
        if len(servers) > 1 and (routing := settings.get(name, RoutingSettings())).session_affinity
    }
    errors, script = path.with_name("503.http"), path.with_name(SCRIPT.name)
    errors.write_bytes(unavailable_page())
    script.write_text(f"{lua_tables(sessions)}\n{SCRIPT.read_text()}")
    path.write_text(DONE + "".join(completed(sections, sessions, errors, script)))


def parse(text: str) -> list[Section]:
    sections = [Section("")]
    for line in text.splitlines():
        if line and not line[0].isspace():
            sections.append(Section(line))
        else:
            sections[-1].lines.append(line)
    titles = [section.title for section in sections]
    for title in ("global", "defaults", FRONTEND, *DROPPED):
        if titles.count(title) != 1:
            raise ValueError(f"Ray Serve's configuration of HAProxy has {titles.count(title)} sections '{title}'")
    return sections


def completed(
    sections: Sequence[Section], sessions: Mapping[str, Sessions], errors: Path, script: Path
) -> Iterator[str]:
    for section in sections:
        if section.title in DROPPED:
            continue
        text = section.text
        if section.title == "global":
            text = _replaced(text, "mode 666", "mode 600") + f"    lua-load-per-thread {script}\n"
        elif section.title == "defaults":
            text += "    option http-server-close\n"
            for status in (502, 503, 504):
                text = _replaced(text, rf"errorfile {status} \S+", f"errorfile {status} {errors}")
        elif section.title == FRONTEND:
            session = f"req.hdr({SESSION_HEADER}),length"
            found = "".join(
                f"    http-request lua.session {name} if is_{name} {{ {session} gt 0 }}\n" for name in sessions
            )
            text = _replaced(text, RULES, f"{found}{RULES}")
        elif section.title.removeprefix("backend ") in sessions:
            text += "    use-server %[var(txn.session_server)] if { var(txn.session_server) -m found }\n"
        yield text


def _replaced(text: str, pattern: str, replacement: str) -> str:
    changed, count = re.subn(pattern, replacement, text)
    if count != 1:
        raise ValueError(f"Ray Serve's configuration of HAProxy has '{pattern}' {count} times")
    return changed


def unavailable_page() -> bytes:
    """OpenAI's error as HAProxy's error files are: a whole answer."""
    error = unavailable("no replica could take this request")
    headers = {b"content-type": b"application/json", b"content-length": b"%d" % len(error.body), **dict(error.headers)}
    lines = [b"HTTP/1.1 503 Service Unavailable", *(b"%b: %b" % header for header in headers.items())]
    return b"\r\n".join([*lines, b"", error.body])


def lua_tables(sessions: Mapping[str, Sessions]) -> str:
    """The variables of `sessions.lua`. Names are those that HAProxy allows, so JSON's quoting is Lua's too."""

    def table(one: Sessions) -> str:
        routing = one.routing
        servers = ", ".join(map(json.dumps, one.servers))
        limits = f"slack = {routing.session_slack_requests}, factor = {routing.session_load_factor}"
        return f"{{ {limits}, servers = {{ {servers} }} }}"

    entries = "".join(f"    [{json.dumps(name)}] = {table(one)},\n" for name, one in sessions.items())
    return f"local header = {json.dumps(SESSION_HEADER)}\nlocal backends = {{\n{entries}}}"


def routing_variable(routing: Mapping[str, RoutingSettings]) -> str:
    """The environment variable's value for settings by application."""
    return json.dumps({app: settings.model_dump() for app, settings in routing.items()})


def read_routing(environment: Mapping[str, str]) -> dict[str, RoutingSettings]:
    """Settings by backend. Others have the defaults."""
    found = json.loads(environment.get(ROUTING_ENV, "{}"))
    return {backend_name(app): RoutingSettings.model_validate(settings) for app, settings in found.items()}


def backend_name(app: str) -> str:
    """As in Serve's `HAProxyManager._generate_backend_name`."""
    return re.sub(r"[^A-Za-z0-9._-]+", "_", f"http-{app}".replace("#", "-").replace("/", "."))
