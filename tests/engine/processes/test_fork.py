"""Processes of an engine on CPU: forked from a fork server, bound to cores, and gone with whoever started them."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from serve_app.engine.processes import fork as processes
from serve_app.engine.processes.fork import EngineProcess, WorkerProcess, bind_rank, preloaded_libraries

CHAIN = """
import os, time
from serve_app.engine.processes import fork as processes
from serve_app.engine.processes.lifeline import tie_to_parent
from serve_app.engine.processes.fork import EngineContext, WorkerContext

del processes.PRELOADED[1:]  # not vLLM, for the sake of time

def worker(core):
    leads = os.getsid(0) == os.getpid()
    print(core, os.getpid(), os.environ["ONLY_HERE"], os.sched_getaffinity(0), leads, flush=True)
    time.sleep(60)

def core():
    tie_to_parent()
    kwargs = {"core": os.getpid()}
    WorkerContext().Process(target=worker, kwargs=kwargs, name="VllmWorker-0", daemon=True).start()
    time.sleep(60)

if __name__ == "__main__":
    processes.start_fork_server()
    os.environ["ONLY_HERE"] = "yes"  # after the fork server took its own environment
    os.environ["VLLM_CPU_OMP_THREADS_BIND"] = "0"
    EngineContext().Process(target=core, kwargs={}, name="EngineCore").start()
    time.sleep(60)
"""


@pytest.mark.timeout(120)
def test_forked_processes_have_their_parents_environment_and_cores_and_go_with_it(tmp_path: Path) -> None:
    (tmp_path / "chain.py").write_text(CHAIN)
    parent = subprocess.Popen([sys.executable, str(tmp_path / "chain.py")], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    core, worker, *rest = parent.stdout.readline().split()
    assert rest == ["yes", "{0}", "True"]
    everyone = psutil.Process(parent.pid).children(recursive=True)
    assert {int(core), int(worker)} < {one.pid for one in everyone}
    (server,) = [one for one in psutil.Process(parent.pid).children() if "forkserver" in " ".join(one.cmdline())]
    assert [one.pid for one in psutil.Process(int(worker)).parents()[:3]] == [int(core), server.pid, parent.pid]
    os.kill(parent.pid, signal.SIGKILL)
    parent.wait()
    parent.stdout.close()
    _, left = psutil.wait_procs(everyone, timeout=10)
    assert left == []


def test_processes_take_what_vllm_gives_them() -> None:
    """By name only, so that a change of vLLM's fails here and not in a server."""
    source = Path(str(processes._folder("vllm")))
    core = (source / "v1/engine/utils.py").read_text()
    worker = (source / "v1/executor/multiproc_executor.py").read_text()
    assert "context = get_mp_context()" in core
    assert "target=EngineCoreProc.run_engine_core" in core
    assert 'name=f"EngineCore_DP{global_index}" if is_dp else "EngineCore"' in core
    assert "context = get_mp_context()" in worker
    assert "target=WorkerProc.worker_main" in worker
    assert EngineProcess(target=print, kwargs={}, name="EngineCore").name == "EngineCore"
    assert WorkerProcess(target=print, kwargs={}, name="VllmWorker-1", daemon=True).daemon


@pytest.fixture
def affinity() -> object:
    before = os.sched_getaffinity(0)
    yield before
    os.sched_setaffinity(0, before)


@pytest.mark.usefixtures("affinity")
@pytest.mark.parametrize(("binding", "cores"), [("0|1", {1}), ("0|0,1", {0, 1}), ("auto", None), ("0-1|0-1", None)])
def test_a_rank_runs_on_its_own_cores_and_an_operators_binding_is_left_alone(
    binding: str, cores: set[int] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    threads: list[int] = []
    monkeypatch.setattr(torch, "set_num_threads", threads.append)
    before = os.sched_getaffinity(0)
    if cores is not None and not cores <= before:
        pytest.skip("this process may not run on cores 0 and 1")
    bind_rank(1, binding)
    assert os.sched_getaffinity(0) == (before if cores is None else cores)
    assert threads == ([] if cores is None else [len(cores)])


def test_libraries_are_those_that_vllm_would_preload(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for file in ("torch/lib/libgomp.so.1", "vllm/libs/libtcmalloc_minimal.so.4"):
        (tmp_path / file).parent.mkdir(parents=True)
        (tmp_path / file).touch()
    monkeypatch.setattr(processes, "_folder", tmp_path.__truediv__)
    gomp, malloc = tmp_path / "torch/lib/libgomp.so.1", tmp_path / "vllm/libs/libtcmalloc_minimal.so.4"
    assert preloaded_libraries("") == f"{malloc}:{gomp}"
    assert preloaded_libraries("/opt/libiomp5.so") == f"{malloc}:/opt/libiomp5.so"
    assert preloaded_libraries("/opt/libiomp5.so:/opt/libtcmalloc.so.4") == "/opt/libiomp5.so:/opt/libtcmalloc.so.4"


@pytest.mark.engine
def test_vllm_preloads_nothing_else_for_its_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    from vllm import AsyncEngineArgs

    from serve_app.models.default import prepare

    monkeypatch.setenv("LD_PRELOAD", preloaded_libraries(""))
    before = os.environ["LD_PRELOAD"]
    AsyncEngineArgs(model=str(prepare()), max_model_len=256).create_engine_config()
    assert os.environ["LD_PRELOAD"] == before
