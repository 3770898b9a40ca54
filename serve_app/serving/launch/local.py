"""A local cluster for the time of a block of code: `serve run` as a child process.

Waits until every replica is ready, or tells why none will be. Finds all its processes by RUN_MARKER in their inherited
environment.
"""

from __future__ import annotations

import os
import signal
import socket
import ssl
import stat
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import httpx
import psutil

from serve_app.engine.processes import timeline
from serve_app.engine.processes.lifeline import die_with_parent
from serve_app.errors import ServerUnavailable
from serve_app.serving.haproxy import environment
from serve_app.serving.haproxy.configuration import routing_variable
from serve_app.serving.launch.config import ServeConfig
from serve_app.serving.launch.wiring import EngineConfig
from serve_app.settings import ROUTING_ENV, api_key_headers

RUN_MARKER = "SERVE_APP_RUN"
DRIVER_ROUTE = "/v1/populations"
STOP_TIMEOUT_S = 45.0
# A stop waits for it, and nothing but HAProxy is in front.
DRAINING_S = "4"
# Tied processes (engine/processes/lifeline.py) end just after their parent.
SETTLE_S = 10.0


@dataclass(frozen=True)
class LocalServer:
    """`marker` is the RUN_MARKER of its processes."""

    settings: ServeConfig
    process: subprocess.Popen[bytes]
    marker: str

    def processes(self) -> list[psutil.Process]:
        """All that run for it: Ray's, Serve's and the engines'."""
        return marked_processes(self.marker)

    def wait(self) -> int:
        """Exit status of `serve run`, which should not end."""
        return self.process.wait()


@contextmanager
def local_serve(config: Path, *, log: Path, **options: Any) -> Iterator[str]:
    with local_server(config, log=log, **options) as server:
        yield server.settings.base_url


@contextmanager
def local_server(
    config: Path,
    *,
    log: Path,
    on_wait: Callable[[str], None] = lambda message: None,
    timeout_s: float = 900.0,
    env: dict[str, str] | None = None,
) -> Iterator[LocalServer]:
    """Run the config file's applications until all replicas are ready.

    `on_wait` gets a line every few seconds. Raises ServerUnavailable, with the log's reason, if they do not come up;
    BadSettings for an unusable config file. `start_stages(log)` gives the start's times.
    """
    settings = ServeConfig.load(config)
    settings.check()
    marker = uuid.uuid4().hex
    log.parent.mkdir(parents=True, exist_ok=True)
    stages = _timeline_file(log)
    stages.unlink(missing_ok=True)
    timeline.mark("start", file=stages)
    with open(log, "w") as output:
        process = subprocess.Popen(
            [str(Path(sys.executable).with_name("serve")), "run", str(config)],
            stdout=output,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            env={
                **os.environ,
                **(env or {}),
                **serve_environment(settings, {**os.environ, **(env or {})}),
                RUN_MARKER: marker,
                timeline.TIMELINE_ENV: str(stages),
            },
            start_new_session=True,  # Ctrl-C reaches us; we stop it in order
            preexec_fn=_prepare_child,
        )
    try:
        _wait_until_ready(process, settings, log, on_wait, timeout_s)
        yield LocalServer(settings, process, marker)
    finally:
        on_wait("stopping Ray and the replicas")
        stop(process, marker)


def _prepare_child() -> None:
    """Stop with us, even if we are killed; restore SIGINT, which shells ignore for background jobs."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    die_with_parent(signal.SIGTERM)


def serve_environment(settings: ServeConfig, given: Mapping[str, str]) -> dict[str, str]:
    """Environment of `serve run`. HAProxy's files are this user's, and its ports free: another cluster may run."""
    chosen = environment.variables(given, settings.document.data.get("http_options") or {})
    if environment.direct_ingress(chosen):
        folder = private_folder()
        chosen |= {
            "RAY_SERVE_HAPROXY_BINARY_PATH": str(Path(sys.executable).with_name("serve-app-haproxy")),
            "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": f"{folder}/haproxy.cfg",
            "RAY_SERVE_HAPROXY_SOCKET_PATH": f"{folder}/admin.sock",
            "RAY_SERVE_HAPROXY_METRICS_SOCKET_PATH": f"{folder}/metrics.sock",
            "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": str(folder),
            "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": f"{folder}/server-state",
            "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT": str(unused_port()),
            environment.DRAINING: given.get(environment.DRAINING, DRAINING_S),
            ROUTING_ENV: routing_variable({engine.app: engine.settings.routing for engine in settings.engines}),
        }
    path = f"{Path(sys.executable).parent}{os.pathsep}{given.get('PATH', '')}"
    return {**chosen, **_loopback(given), "PATH": path}


def private_folder() -> Path:
    """A folder that only this user can enter, the same each time unless another has taken its name."""
    folder = Path(tempfile.gettempdir()) / f"serve-app-{os.getuid()}"
    with suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    found = folder.lstat()
    mine = stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid() and not found.st_mode & 0o077
    return folder if mine else Path(tempfile.mkdtemp(prefix=f"{folder.name}-"))


def unused_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _loopback(given: Mapping[str, str]) -> dict[str, str]:
    """Have a cluster of this machine alone be 127.0.0.1. By the machine's own address all of Ray (GCS, raylet, workers,
    agents, metrics) listens to everybody, and runs what it is sent. Ray has the variable for where that is its default.
    """
    name = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"
    if given.get("RAY_ADDRESS", "local") != "local":
        return {}
    return {name: given.get(name, "0")}


def start_stages(log: Path) -> dict[str, float]:
    """Seconds from the start to each stage's end by this log; see `engine/processes/timeline.py`."""
    return timeline.read(_timeline_file(log))


def stages_line(stages: dict[str, float]) -> str:
    """As "ray 8 s, controller 12 s, …"."""
    return ", ".join(f"{name.removesuffix('_s').replace('_', ' ')} {seconds:.0f} s" for name, seconds in stages.items())


def _timeline_file(log: Path) -> Path:
    return log.with_name(f"{log.stem}.timeline.jsonl").absolute()


class _StageLines:
    """Records the first stages, which only the log of `serve run` shows."""

    LINES: ClassVar = {"ray": "Started a local Ray instance", "controller": "Started Serve in namespace"}

    def __init__(self, log: Path) -> None:
        self._log = log
        self._missing = dict(self.LINES)

    def look(self) -> None:
        if self._missing:
            text = self._log.read_text(errors="replace")
            for stage in [stage for stage, line in self._missing.items() if line in text]:
                timeline.mark(stage, file=_timeline_file(self._log))
                del self._missing[stage]


def _wait_until_ready(
    process: subprocess.Popen[bytes],
    settings: ServeConfig,
    log: Path,
    on_wait: Callable[[str], None],
    timeout_s: float,
) -> None:
    started = last_told = time.monotonic()
    stage_lines = _StageLines(log)
    ready = 0
    while True:
        stage_lines.look()
        if process.poll() is not None:
            raise ServerUnavailable(f"`serve run` ended before the replicas were ready: {failure_reason(log)}")
        answered, ready, failure = replicas_ready(settings.base_url, settings.trusted)
        if failure:
            raise ServerUnavailable(f"the replicas cannot start: {failure} (log: {log})")
        others = [engine for engine in settings.engines if engine is not settings.worked and engine.replicas]
        if answered and ready >= settings.worked.replicas and all(_answers(settings, engine) for engine in others):
            return
        now = time.monotonic()
        if now - started > timeout_s:
            raise ServerUnavailable(
                f"{ready} of {settings.worked.replicas} replicas were ready after {timeout_s:g} s; see {log}"
            )
        if now - last_told > 5.0:
            what = timeline.under_way(_timeline_file(log))
            on_wait(f"{now - started:.0f} s: {ready} of {settings.worked.replicas} replicas ready; {what}")
            last_told = now
        time.sleep(1.0)  # asking slows the start


def _answers(settings: ServeConfig, engine: EngineConfig) -> bool:
    with suppress(httpx.HTTPError):
        url = f"{settings.base_url}{engine.route_prefix.rstrip('/')}/health"
        return httpx.get(url, timeout=5.0, verify=settings.trusted).is_success
    return False


def replicas_ready(base_url: str, verify: ssl.SSLContext | bool = True) -> tuple[bool, int, str]:
    """Whether the driver answers, how many replicas can work, and why none ever will."""
    with (
        suppress(httpx.HTTPError, ValueError, KeyError),
        httpx.Client(base_url=base_url, timeout=5.0, headers=api_key_headers(), verify=verify) as client,
    ):
        # Before the driver's route exists, `/` would take the request and start a replica.
        if DRIVER_ROUTE not in client.get("/-/routes").json():
            return False, 0, ""
        answer = client.get(f"{DRIVER_ROUTE}/replicas").json()
        return True, len(answer["data"]), answer["failure"]
    return False, 0, ""


def failure_reason(log: Path) -> str:
    """The log line with the reason: our last error, else the last line."""
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    ours = [line.partition("serve_app.errors.")[2] for line in lines if "serve_app.errors." in line]
    return (ours or lines or ["it printed nothing"])[-1]


def stop(process: subprocess.Popen[bytes], marker: str) -> list[int]:
    """Stop `serve run` like Ctrl-C and wait for all its processes. Returns the PIDs that had to be killed, normally
    none.
    """
    with suppress(ProcessLookupError):
        process.send_signal(signal.SIGINT)
    try:
        process.wait(STOP_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    deadline = time.monotonic() + SETTLE_S
    while (left := marked_processes(marker)) and time.monotonic() < deadline:
        time.sleep(0.2)
    for one in left:
        with suppress(psutil.Error):
            one.kill()
    return [one.pid for one in left]


def marked_processes(marker: str) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error, OSError):
            if process.environ().get(RUN_MARKER) == marker and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found
