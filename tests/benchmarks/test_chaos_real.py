"""The faults of the benchmark happen, and end: a store that refuses, a store that is slow, a clock that is set."""

import json
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import psutil
import pyarrow.fs
import pytest
from fastapi import FastAPI
from fastapi.responses import JSONResponse

from benchmarks.chaos_real import online as online_module
from benchmarks.chaos_real.online import Online
from benchmarks.chaos_real.processes import Processes
from benchmarks.chaos_real.records import STOP, good, read, summary
from benchmarks.chaos_real.run import Commits, Record
from benchmarks.chaos_real.stores import DELAY_S, LOCAL, REMOTE, Stores
from benchmarks.chaos_real.wall_clock import WallClock
from tests.conftest import served

CHILD = "import sys, time\nfor line in sys.stdin: print(time.time(), time.monotonic(), flush=True)"


@pytest.fixture
def stores(tmp_path: Path) -> Iterator[Stores]:
    with Stores(tmp_path) as stores:
        yield stores


def writes(folder: Path, name: str) -> bool:
    try:
        (folder / name).write_bytes(b"row")
    except OSError:
        return False
    return True


def test_a_full_store_takes_no_byte_until_it_has_room_again(stores: Stores) -> None:
    folder = Path(stores.url(LOCAL))
    assert writes(folder, "a")
    undo = stores.fill(psutil.Process().pid)
    assert not writes(folder, "b")
    undo()
    assert writes(folder, "c")


def test_a_read_only_store_can_be_read_and_not_written(stores: Stores) -> None:
    folder = Path(stores.url(LOCAL))
    assert writes(folder, "d")
    try:
        undo = stores.forbid_writes()
    except NotImplementedError as error:
        pytest.skip(str(error))
    assert not writes(folder, "e")
    assert (folder / "d").read_bytes() == b"row"
    undo()
    assert writes(folder, "f")


def test_a_slow_store_is_slow_for_those_who_go_through_the_relay(stores: Stores) -> None:
    filesystem, path = pyarrow.fs.FileSystem.from_uri(stores.url(REMOTE))
    direct, _ = stores.open(REMOTE, "job")
    undo = stores.delay()
    for one, slow in ((filesystem, True), (direct, False)):
        began = time.monotonic()
        with one.open_output_stream(f"{path}/row") as file:
            file.write(b"row")
        assert (time.monotonic() - began >= DELAY_S) == slow
    undo()


@pytest.mark.skipif(find_spec("libfaketime") is None, reason="make chaos-real installs libfaketime")
def test_the_wall_clock_of_a_running_process_is_set_and_the_steady_clock_is_not(tmp_path: Path) -> None:
    clock = WallClock(tmp_path)
    child = subprocess.Popen([sys.executable, "-c", CHILD], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
                             env=clock.environment)  # fmt: skip
    assert child.stdin is not None
    assert child.stdout is not None

    def clocks() -> tuple[float, float]:
        """How far the child's clocks are from ours."""
        print(file=child.stdin, flush=True)
        wall, steady = map(float, child.stdout.readline().split())  # type: ignore[union-attr]
        return wall - time.time(), steady - time.monotonic()

    for seconds in (3600.0, -7200.0):
        before, _ = clocks()
        undo = clock.step(seconds)
        deadline = time.monotonic() + 5
        while abs(clocks()[0] - before - seconds) > 1:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        assert abs(clocks()[1]) < 1
    undo()
    child.communicate()


def test_a_process_whose_parent_ended_is_an_orphan(tmp_path: Path) -> None:
    marker = tmp_path.name
    script = "import subprocess, sys; subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])"
    processes = Processes(marker)
    subprocess.run([sys.executable, "-c", script], env={"SERVE_APP_RUN": marker}, check=True)
    (left,) = processes.orphans()
    (process,) = processes.all()
    assert left.startswith(f"{process.pid} ")
    process.kill()
    process.wait()
    assert processes.orphans() == []


def test_recovery_is_the_longest_time_without_a_committed_row_from_the_fault_on() -> None:
    commits = Commits(None, "job")
    commits.seen = [(10.0, 5), (19.0, 6), (21.0, 7), (30.0, 8), (31.0, 9)]
    assert commits.recovery_s(18.0) == 9.0
    assert commits.recovery_s(20.5) == 9.0
    assert commits.recovery_s(30.5) == 0.5
    assert commits.recovery_s(40.0) is None


def test_parts_are_summed_and_any_row_lost_or_process_left_is_no_success(tmp_path: Path) -> None:
    runs = [Record("a", ended=True, rows=9, recovery_s=2.0, online_errors={"503": 2}), Record(STOP, ended=True)]
    path = tmp_path / "parts.json"
    path.write_text(json.dumps(summary(runs, simulated=True)))
    both = [*read(path, simulated=True), Record("b", ended=True, rows=9, recovery_s=3.0, online_errors={"503": 1})]
    result = summary(both, simulated=True)
    assert (result["faults"], result["runs"], result["recovery_s_max"], result["online_errors"]) == (2, 2, 3.0, 3)
    assert good(result)
    for bad in (
        Record("c", ended=False),
        Record("c", ended=True, lost=1),
        Record("c", ended=True, duplicated=1),
        Record("c", ended=True, defaulted=1),
        Record(STOP, ended=True, orphans=["1 x"]),
    ):
        assert not good(summary([*both, bad], simulated=True))
    with pytest.raises(SystemExit, match="simulated engines"):
        read(path, simulated=False)


def test_online_requests_without_an_answer_are_counted_by_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(online_module, "PAUSE_S", 0.01)
    app, answers = FastAPI(), Counter[str]()

    @app.post("/v1/chat/completions")
    def chat() -> Any:
        answers["all"] += 1
        if answers["all"] % 3 == 0:
            return JSONResponse({"error": {"message": "busy"}}, 503)
        return {"choices": [{"finish_reason": "stop"}]} if answers["all"] % 3 == 1 else {}

    with served(app) as base_url, Online(base_url, "sim") as online:
        while answers["all"] < 12:
            time.sleep(0.01)
        found = online.take()
    assert found.errors.keys() == {"503 busy", "no answer in a 200"}
    assert 0 < found.errors.total() < found.requests <= 13
    with Online(base_url, "sim") as online:
        while not (taken := online.take()).requests:
            time.sleep(0.01)
    assert taken.errors.keys() == {"ConnectError"}
