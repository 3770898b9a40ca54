"""`vllm serve`, and what any OpenAI server in a process of its own needs to be a side of a comparison.

Knows how to start a server, to tell when it answers, to freeze it between its passes and to leave nothing of it. What
it is asked, and how fast it answers, is `benchmarks.load`'s to know.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path

import httpx

from benchmarks.peers import ROOT, SETTLE_S, STOCK, STOP_TIMEOUT_S, Case, Freezable, signal_session
from benchmarks.peers.run_batch import command_line
from serve_app.engine.host.cpu import available_cores, binding
from serve_app.engine.processes.lifeline import die_with_parent
from serve_app.errors import ServerUnavailable

MODEL = "model"
START_TIMEOUT_S = 600.0
REQUEST_TIMEOUT_S = 60.0
POLL_S = 1.0


class HttpServer(Freezable):
    """A command that serves `model` on `port` of this machine. What it prints goes to `log`.

    It has a session of its own, all of which is frozen by `freeze` (see benchmarks/peers/__init__.py), and dies with
    the thread that started it.
    """

    def __init__(
        self, command: Sequence[str], case: Case, *, port: int, log: Path, env: Mapping[str, str] | None = None
    ) -> None:
        self.base_url = f"http://127.0.0.1:{port}"
        self.model = MODEL
        self._command = list(command)
        ranks = int(case.engine.get("tensor_parallel_size", 1))
        cores = binding(ranks, case.cores_per_rank, slot=0, cores=available_cores())
        self._env = {**os.environ, **STOCK, **(env or {}), "VLLM_CPU_OMP_THREADS_BIND": cores}
        self._log = log
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it and wait for an answer. Raises ServerUnavailable when none comes."""
        self._log.parent.mkdir(parents=True, exist_ok=True)
        with open(self._log, "w") as log:
            self._process = subprocess.Popen(
                self._command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=ROOT,
                env=self._env,
                start_new_session=True,  # Ctrl-C reaches us, and we stop it in order
                preexec_fn=partial(die_with_parent, signal.SIGKILL),  # a frozen process heeds no other
            )
        wait_for_answer(self.base_url, self.model, self._ended)

    def _ended(self) -> str:
        if self._process is None or self._process.poll() is None:
            return ""
        return f"{' '.join(self._command[:3])} ended; see {self._log}"

    @property
    def session(self) -> int:
        """The session of its processes. Raises ServerUnavailable before `start`."""
        if self._process is None:
            raise ServerUnavailable(f"{self.base_url}: it was not started")
        return self._process.pid

    def stop(self) -> None:
        """Leave nothing running. May be called twice, and before `start`."""
        self.thaw()
        process, self._process = self._process, None
        if process is None:
            return
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(STOP_TIMEOUT_S)
        time.sleep(SETTLE_S)
        signal_session(process.pid, signal.SIGKILL)
        process.wait()


class VllmServe(HttpServer):
    """`vllm serve` with its defaults and the case's engine options.

    Two options are the front end's: its usage tells cached tokens, so that sides can be checked for equal work, and
    it writes no line a request, as our replica does not.
    """

    def __init__(self, case: Case, *, port: int, log: Path) -> None:
        options = {
            "model": case.model,
            "served_model_name": MODEL,
            "host": "127.0.0.1",
            "port": port,
            **case.engine,
            "enable_prompt_tokens_details": True,
            "disable_uvicorn_access_log": True,
        }
        # The command `vllm` looks for a distribution of that name, which the CPU build has not; this is its server.
        entry = "vllm.entrypoints.launchers.api_server.entry"
        super().__init__([sys.executable, "-m", entry, *command_line(options)], case, port=port, log=log)


def wait_for_answer(
    base_url: str, model: str, ended: Callable[[], str] = lambda: "", *, timeout_s: float = START_TIMEOUT_S
) -> None:
    """Return once the server generates a token; a health route may answer before the engine can.

    `ended` says why no answer will ever come, or nothing. Raises ServerUnavailable.
    """
    asked = {"model": model, "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 1}
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            answer = httpx.post(f"{base_url}/v1/chat/completions", json=asked, timeout=REQUEST_TIMEOUT_S)
            if answer.is_success:
                return
            refused = f"{answer.status_code} {answer.text[:200]}"
        except httpx.HTTPError as error:
            refused = repr(error)
        if reason := ended():
            raise ServerUnavailable(f"{base_url}: {reason}")
        if time.monotonic() > deadline:
            raise ServerUnavailable(f"{base_url} generated nothing within {timeout_s:g} s: {refused}")
        time.sleep(POLL_S)
