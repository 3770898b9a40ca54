"""Processes tied to their parent go with it, in a chain, as EngineCore and its workers do."""

import os
import signal
import subprocess
import sys
import time
from importlib.metadata import entry_points
from importlib.util import find_spec
from pathlib import Path

import psutil

from serve_app.engine.lifeline import NICENESS, NICENESS_ENV, WORKER_NAME

CHAIN = """
import multiprocessing as mp, os, sys, time
from serve_app.engine.lifeline import tie_to_parent

def worker(pids):
    tie_to_parent(); pids.put(os.getpid()); time.sleep(60)

def core(pids):
    tie_to_parent(); pids.put(os.getpid())
    mp.get_context("spawn").Process(target=worker, args=(pids,)).start(); time.sleep(60)

if __name__ == "__main__":
    tie_to_parent()  # no multiprocessing child: must not touch it
    spawn = mp.get_context("spawn"); pids = spawn.Queue()
    spawn.Process(target=core, args=(pids,)).start()
    print(pids.get(), pids.get(), flush=True); time.sleep(60)
"""


def test_sigkill_of_the_first_process_ends_the_whole_chain(tmp_path: object) -> None:
    script = f"{tmp_path}/chain.py"
    with open(script, "w") as file:
        file.write(CHAIN)
    parent = subprocess.Popen([sys.executable, script], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    children = [psutil.Process(int(pid)) for pid in parent.stdout.readline().split()]
    assert len(children) == 2
    os.kill(parent.pid, signal.SIGKILL)
    parent.wait()
    parent.stdout.close()
    deadline = time.monotonic() + 10
    while any(child.is_running() and child.status() != psutil.STATUS_ZOMBIE for child in children):
        assert time.monotonic() < deadline, "a child outlived its parent"
        time.sleep(0.05)


def test_vllm_loads_the_lifeline_in_each_of_its_processes() -> None:
    (plugin,) = [e for e in entry_points(group="vllm.general_plugins") if e.name == "serve_app_lifeline"]
    assert plugin.load().__name__ == "tie_to_parent"


def niceness_of(name: str, environment: dict[str, str]) -> int:
    """Of a child of that name, above its parent's."""
    script = (
        "import multiprocessing as mp, os\n"
        "from serve_app.engine.lifeline import step_aside\n"
        "def child(found): step_aside(); found.put(os.nice(0))\n"
        "if __name__ == '__main__':\n"
        "    fork = mp.get_context('fork'); found = fork.Queue()\n"
        f"    fork.Process(target=child, args=(found,), name={name!r}).start(); print(found.get() - os.nice(0))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], env={**os.environ, **environment}, capture_output=True, text=True, check=True
    )
    return int(done.stdout)


def test_workers_step_aside_and_nobody_else() -> None:
    assert niceness_of("VllmWorker-1", {}) == NICENESS
    assert niceness_of("VllmWorker-1", {NICENESS_ENV: "0"}) == 0
    assert niceness_of("EngineCore", {}) == 0


def test_vllm_names_its_workers_as_we_look_for_them() -> None:
    source = Path(str(find_spec("vllm").origin)).parent / "v1/executor/multiproc_executor.py"  # type: ignore[union-attr]
    assert f'name=f"{WORKER_NAME}-' in source.read_text()
