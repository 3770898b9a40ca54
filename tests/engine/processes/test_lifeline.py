"""Processes tied to their parent go with it, in a chain, as EngineCore and its workers do."""

import os
import signal
import subprocess
import sys
import time
from importlib.metadata import entry_points

import psutil

from serve_app.engine.host.cpu import own_scheduling_group
from serve_app.engine.processes.lifeline import tie_to_parent
from serve_app.engine.processes.queues import wait_asleep

CHAIN = """
import multiprocessing as mp, os, sys, time
from serve_app.engine.processes.lifeline import tie_to_parent

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


def test_vllm_loads_ours_in_each_of_its_processes() -> None:
    ours = {e.name: e.load() for e in entry_points(group="vllm.general_plugins")}
    assert ours["serve_app_lifeline"] is tie_to_parent
    assert ours["serve_app_groups"] is own_scheduling_group
    assert ours["serve_app_waits"] is wait_asleep
