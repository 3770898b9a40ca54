"""The driver's peers: other ways to score the same rows on the same cores, each at its best.

Knows what a peer is, how to keep one in a process of its own, and what a pass gives. Does not know how any of them
works. A peer is started once and then measured pass by pass, in turns with others: only one is busy at a time, and
starting is in no figure.

An idle engine is not idle at once: vLLM's tensor-parallel workers look for work without pause for one second after
the last they got (`SpinCondition.busy_loop_s`, shm_broadcast.py), on the cores that the next side wants, and Ray's
processes never rest. So a peer with processes of its own has them all frozen (SIGSTOP) between its passes, and a
pass waits SETTLE_S before its clock starts, and after it has stopped where the server is somebody else's.

What we change in vLLM's processes by plugins (pyproject.toml) is ours: a peer in this environment goes without (STOCK).
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

import msgspec
import psutil

from serve_app.engine.host.cpu import available_cores, binding
from serve_app.engine.processes.lifeline import die_with_parent
from serve_app.errors import ServeAppError
from serve_app.schema import Row

ROOT = Path(__file__).parents[2]
STOCK = {"VLLM_PLUGINS": "serve_app_lifeline"}  # but for this one, by which no process outlives its parent
SETTLE_S = 1.5
# An engine starts in half a minute; under Ray, on a busy machine, in minutes.
REPLY_TIMEOUT_S = 900.0
STOP_TIMEOUT_S = 45.0

Pass = dict[str, float | None]
"""rows, ok, wall_s, rows_per_s, cached_share (None where the peer does not tell), margin; and figures of its own.

`ok` counts rows with an answer. `margin` is the mean over them of log p(first label) - log p(second label), natural
logarithms: the same for all peers on the same rows, within bf16's tolerance, or one of them did other work.
"""


class Case(msgspec.Struct, frozen=True):
    """What every side is given.

    `model` is a folder, `engine` holds vLLM's engine options by name, `labels` the answers that are scored and
    `label_ids` the one token of each. Each rank of the engine gets `cores_per_rank` cores of its own.
    """

    model: str
    engine: dict[str, Any]
    labels: tuple[str, ...]
    label_ids: tuple[int, ...]
    cores_per_rank: int = 1


class Peer(Protocol):
    """One side of a comparison."""

    def start(self) -> None:
        """Make ready to run. Raises ServeAppError when it cannot be."""

    def run(self, rows: Sequence[Row]) -> Pass:
        """Score the rows. Raises ServeAppError when the peer fails; a row without an answer is no error."""

    def stop(self) -> None:
        """Leave nothing running. May be called twice, and before `start`."""


class Freezable:
    """A side that runs as a session of processes, whose leader is `_process` once it was started."""

    _process: subprocess.Popen[Any] | None = None

    def thaw(self) -> None:
        """Go on after `freeze`."""
        if self._process is not None:
            signal_session(self._process.pid, signal.SIGCONT)

    def freeze(self) -> None:
        """Take no core until `thaw`."""
        if self._process is not None:
            signal_session(self._process.pid, signal.SIGSTOP)


class Child(Freezable):
    """A peer in a process of its own: `python -m MODULE …`, spoken to in JSON lines (`serve_lines` is its side).

    What it prints goes to `log`. Between passes it and all that it started are frozen; it dies with the thread that
    started it.
    """

    def __init__(self, module: str, *arguments: str, case: Case, log: Path, python: str = sys.executable) -> None:
        self._command = [python, "-m", module, *arguments]
        self._case = case
        self._log = log
        self._process: subprocess.Popen[str] | None = None

    def start(self) -> None:
        ranks = int(self._case.engine.get("tensor_parallel_size", 1))
        cores = binding(ranks, self._case.cores_per_rank, slot=0, cores=available_cores())
        self._log.parent.mkdir(parents=True, exist_ok=True)
        with open(self._log, "w") as log:
            self._process = subprocess.Popen(
                self._command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                cwd=ROOT,
                env={**os.environ, **STOCK, "VLLM_CPU_OMP_THREADS_BIND": cores},
                start_new_session=True,  # Ctrl-C reaches us, and we stop it in order
                preexec_fn=_prepare,
            )
        self.call(msgspec.to_builtins(self._case))
        self.freeze()

    @property
    def session(self) -> int:
        """The session of its processes. Raises ServeAppError before `start`."""
        return self._running().pid

    def run(self, rows: Sequence[Row]) -> Pass:
        self._running()
        self.thaw()
        time.sleep(SETTLE_S)
        reply = self.call({"rows": chats(rows)})
        self.freeze()
        return summary(len(rows), **reply)

    def call(self, message: Mapping[str, Any]) -> dict[str, Any]:
        """Send one message, the arguments by name, and wait for its reply."""
        process = self._running()
        late = threading.Timer(REPLY_TIMEOUT_S, process.kill)
        late.start()
        try:
            print(json.dumps(message), file=process.stdin, flush=True)
            reply: dict[str, Any] = json.loads((process.stdout and process.stdout.readline()) or "{}")
        except BrokenPipeError:
            reply = {}
        finally:
            late.cancel()
        if not reply or "error" in reply:
            raise ServeAppError(f"{self._command[2]}: {reply.get('error', 'it ended')}; see {self._log}")
        return reply

    def _running(self) -> subprocess.Popen[str]:
        if self._process is None:
            raise ServeAppError(f"{self._command[2]} is not running: call start() first")
        return self._process

    def stop(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        signal_session(process.pid, signal.SIGCONT)
        process.send_signal(signal.SIGINT)
        with suppress(subprocess.TimeoutExpired):
            process.wait(STOP_TIMEOUT_S)
        psutil.wait_procs(session(process.pid), timeout=SETTLE_S)
        signal_session(process.pid, signal.SIGKILL)
        process.wait()


def chats(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Rows as a child takes them."""
    return [{"custom_id": row.custom_id, "messages": row.messages} for row in rows]


def signal_session(leader: int, number: signal.Signals) -> None:
    """Send it to every process of the session that process `leader` began: SIGSTOP freezes, SIGCONT thaws."""
    for one in session(leader):
        with suppress(psutil.Error):
            one.send_signal(number)


def session(leader: int) -> list[psutil.Process]:
    """The processes of the session that process `leader` began, and what they started in sessions of its own."""
    # By session: Ray's workers have process groups of their own, and a marker in the environment is lost where a
    # process gives itself a title, as vLLM's do.
    found: dict[int, psutil.Process] = {}
    for one in sorted(psutil.process_iter(["ppid"]), key=lambda one: one.pid):
        with suppress(ProcessLookupError):
            if os.getsid(one.pid) == leader or one.info["ppid"] in found:
                found[one.pid] = one
    return list(found.values())


def _prepare() -> None:
    """In the child: heed SIGINT, which a shell's background job is started without, and go with the parent."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    die_with_parent(signal.SIGKILL)  # a frozen process heeds no other


def serve_lines(build: Callable[[Case], Callable[..., dict[str, Any]]]) -> None:
    """The child's side: the first line is the case, every other a pass. Ends with its input, or at Ctrl-C.

    `build` makes the function that a message's fields are given to. A peer's takes `rows` ({"custom_id", "messages"}),
    scores them and gives `summary`'s other arguments.
    """
    replies = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # engines print, and not only by Python

    def reply(message: dict[str, Any]) -> None:
        print(json.dumps(message), file=replies, flush=True)

    try:
        answer = build(msgspec.convert(json.loads(sys.stdin.readline()), Case))
        reply({"ready": True})
        for line in sys.stdin:
            reply(answer(**json.loads(line)))
    except KeyboardInterrupt:
        pass
    except Exception as error:
        reply({"error": f"{type(error).__name__}: {error}"})
        raise


def summary(
    rows: int,
    *,
    wall_s: float,
    logprobs: Sequence[Sequence[float] | None],
    prompt_tokens: int = 0,
    cached_tokens: int | None = None,
    **own: float | None,
) -> Pass:
    """A pass's figures. `logprobs` holds each row's label log-probabilities, None for a row without an answer."""
    answers = [one for one in logprobs if one]
    margins = [one[0] - one[1] for one in answers if len(one) > 1]
    return {
        "rows": rows,
        "ok": len(answers),
        "wall_s": wall_s,
        "rows_per_s": rows / wall_s,
        "cached_share": cached_tokens / prompt_tokens if cached_tokens is not None and prompt_tokens else None,
        "margin": sum(margins) / len(margins) if margins else None,
        **own,
    }
