import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve_app.engine.host.cpu import (
    GIB,
    MAX_AUTO_KV_BYTES,
    WORKER_NAME,
    binding,
    check_memory,
    claim_cores,
    kv_bytes_per_rank,
    memory_bytes,
)
from serve_app.errors import NotEnoughMemory


@given(st.integers(1, 8), st.integers(1, 8), st.integers(1, 64))
def test_slots_share_no_core_while_there_are_enough(ranks: int, per_rank: int, cores: int) -> None:
    slots = cores // (ranks * per_rank)
    bound = [
        core
        for slot in range(slots)
        for rank in binding(ranks, per_rank, slot=slot, cores=range(cores)).split("|")
        for core in rank.split(",")
    ]
    assert len(bound) == len(set(bound)) == slots * ranks * per_rank


@given(st.integers(1, 8), st.integers(1, 8), st.integers(1, 64), st.integers(0, 9))
def test_every_rank_gets_cores_that_exist(ranks: int, per_rank: int, cores: int, slot: int) -> None:
    lists = binding(ranks, per_rank, slot=slot, cores=range(cores)).split("|")
    assert len(lists) == ranks
    assert all(0 <= int(core) < cores for rank in lists for core in rank.split(","))


def test_replicas_on_one_host_claim_different_cores_and_give_them_back(tmp_path: Path) -> None:
    cores = range(4)
    first = claim_cores(2, 1, cores=cores, lock_dir=tmp_path)
    second = claim_cores(2, 1, cores=cores, lock_dir=tmp_path)
    third = claim_cores(2, 1, cores=cores, lock_dir=tmp_path)
    assert [(c.binding, c.shared) for c in (first, second, third)] == [("0|1", False), ("2|3", False), ("0|1", True)]
    second.release()
    again = claim_cores(2, 1, cores=cores, lock_dir=tmp_path)
    assert (again.binding, again.shared) == ("2|3", False)
    for claim in (first, third, again):
        claim.release()


def test_two_cores_serve_two_replicas_of_two_ranks(tmp_path: Path) -> None:
    claims = [claim_cores(2, 1, cores=[0, 1], lock_dir=tmp_path) for _ in range(2)]
    assert [claim.binding for claim in claims] == ["0|1", "0|1"]
    assert [claim.shared for claim in claims] == [False, True]
    for claim in claims:
        claim.release()


@given(st.integers(1, 512), st.integers(1, 8), st.integers(1, 8), st.integers(1, 100))
def test_unset_kv_space_leaves_room_for_all_replicas(total_gib: int, ranks: int, replicas: int, weight: int) -> None:
    worker = GIB + weight * GIB // 10
    kv = kv_bytes_per_rank(None, worker=worker, ranks=ranks, replicas=replicas, total=total_gib * GIB)
    assert 0 < kv <= MAX_AUTO_KV_BYTES
    if kv > 128 << 20:  # above the least that is useful
        assert replicas * ranks * (worker + kv) <= total_gib * GIB


def test_kv_space_that_was_asked_for_is_kept() -> None:
    assert kv_bytes_per_rank(123, worker=GIB, ranks=2, replicas=2, total=GIB) == 123


def test_too_little_memory_is_said_in_figures() -> None:
    check_memory(2 * GIB, GIB, workers=4, free=8 * GIB)
    with pytest.raises(NotEnoughMemory, match=r"4 workers need 8\.0 GiB .* and 7\.0 GiB are free: lower"):
        check_memory(2 * GIB, GIB, workers=4, free=7 * GIB)


def leads_its_session(name: str) -> bool:
    """Whether a child process of that name leads a session afterwards."""
    script = (
        "import multiprocessing as mp, os\n"
        "from serve_app.engine.host.cpu import own_scheduling_group\n"
        "def child(found):\n"
        "    own_scheduling_group()\n"
        "    found.put(os.getsid(0) == os.getpid())\n"
        "if __name__ == '__main__':\n"
        "    fork = mp.get_context('fork'); found = fork.Queue()\n"
        f"    fork.Process(target=child, args=(found,), name={name!r}).start()\n"
        "    print(found.get())\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return done.stdout.strip() == "True"


def test_workers_have_a_scheduling_group_of_their_own_and_nobody_else() -> None:
    assert leads_its_session("VllmWorker-1")
    assert not leads_its_session("EngineCore")


def test_vllm_names_its_workers_as_we_look_for_them() -> None:
    source = Path(str(find_spec("vllm").origin)).parent / "v1/executor/multiproc_executor.py"  # type: ignore[union-attr]
    assert f'name=f"{WORKER_NAME}-' in source.read_text()


def test_a_container_that_has_read_its_weights_has_the_page_cache_free(tmp_path: Path) -> None:
    (tmp_path / "memory.max").write_text(f"{64 << 20}\n")
    (tmp_path / "memory.current").write_text(f"{60 << 20}\n")
    assert memory_bytes(tmp_path) == (4 << 20, 64 << 20)
    stat = {"anon": 10 << 20, "file": 50 << 20, "shmem": 2 << 20, "inactive_file": 40 << 20, "active_file": 8 << 20}
    (tmp_path / "memory.stat").write_text("".join(f"{name} {count}\n" for name, count in stat.items()))
    assert memory_bytes(tmp_path) == (52 << 20, 64 << 20)
    (tmp_path / "memory.max").write_text("max\n")
    assert memory_bytes(tmp_path)[1] > 64 << 20
