"""SIGKILL at any moment."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

from serve_app.driver.store.store import Store
from tests.driver.store.kit import ids

ROOT = Path(__file__).parents[3]
WRITER = """
import sys
from tests.driver.store.kit import some, writer
log = writer(sys.argv[1], fan_out=3)
for i in range(log.rows // 20, 10_000):
    log.append(some(*(f"{i}-{j}" for j in range(20))), {"ok": i})
    print(i, flush=True)
"""


def test_sigkill_at_any_moment_loses_no_committed_row_and_tears_none(tmp_path: Path) -> None:
    Store(str(tmp_path)).create("job-1", {})
    for _ in range(4):  # each goes on with what the one before has left
        process = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(tmp_path)], stdout=subprocess.PIPE, text=True, cwd=ROOT
        )
        assert process.stdout is not None
        acknowledged = [int(process.stdout.readline())]
        time.sleep(random.uniform(0, 0.3))
        os.kill(process.pid, signal.SIGKILL)
        acknowledged += [int(line) for line in process.stdout.read().split("\n")[:-1]]
        process.wait()
        process.stdout.close()
        found = ids(Store(str(tmp_path)).open("job-1"))
        commits = len(found) // 20
        assert commits in (acknowledged[-1] + 1, acknowledged[-1] + 2)  # the last may not be acknowledged yet
        assert found == [f"{i}-{j}" for i in range(commits) for j in range(20)]


STEPS = """
import json, os, signal, sys
from serve_app.storage import filesystem as files
from tests.driver.store.kit import ids, some, writer

def write(folder, step, acknowledge):
    left = iter(range(step))
    def or_die(call):
        def called(*arguments, **options):
            if next(left, None) is None:
                os.kill(os.getpid(), signal.SIGKILL)
            return call(*arguments, **options)
        return called
    for module, name in [(os, "fsync"), (os, "replace"), (files.Folder, "delete"), (files.Folder, "open_output")]:
        setattr(module, name, or_die(getattr(module, name)))
    log = writer(folder, fan_out=2)
    for i in range(6):
        log.append(some(i), {"ok": i})
        os.write(acknowledge, b".")

step, killed = 0, True
while killed:
    folder = f"{sys.argv[1]}/{step}"
    writer(folder)
    read_end, write_end = os.pipe()
    if not (child := os.fork()):
        write(folder, step, write_end)
        os._exit(0)
    os.close(write_end)
    killed = os.WIFSIGNALED(os.waitpid(child, 0)[1])
    acknowledged = len(os.read(read_end, 100))
    os.close(read_end)
    found = ids(writer(folder))
    files_left = len(os.listdir(f"{folder}/job-1/parts/0000/segments"))
    named = len(writer(folder)._load().segments)
    print(json.dumps([killed, acknowledged, found, files_left, named]), flush=True)
    step += 1
"""


def test_sigkill_before_any_step_of_commits_and_compactions_loses_and_leaves_nothing(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", STEPS, str(tmp_path)], stdout=subprocess.PIPE, text=True, cwd=ROOT)
    runs = [json.loads(line) for line in done.stdout.splitlines()]
    assert done.returncode == 0
    assert len(runs) > 40
    assert runs[-1][:3] == [False, 6, [str(i) for i in range(6)]]
    for _, acknowledged, found, files_left, named in runs:
        assert found in ([str(i) for i in range(n)] for n in (acknowledged, acknowledged + 1))
        assert files_left == named
