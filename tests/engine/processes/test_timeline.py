import json
from pathlib import Path

import pytest

from serve_app.engine.processes import timeline
from serve_app.engine.processes.timeline import TIMELINE_ENV, mark, marking, read
from serve_app.serving.launch.local import stages_line


def test_stages_are_seconds_from_the_start_of_the_process_that_finished_last(tmp_path: Path) -> None:
    file = tmp_path / "t.jsonl"
    entries = [("start", 100.0), ("weights", 130.5), ("ray", 108.0), ("weights", 131.0), ("first_token", 140.04)]
    file.write_text("".join(json.dumps({"stage": stage, "at": at, "pid": 1}) + "\n" for stage, at in entries))
    stages = read(file)
    assert list(stages.items()) == [("ray_s", 8.0), ("weights_s", 31.0), ("first_token_s", 40.0)]
    assert stages_line(stages) == "ray 8 s, weights 31 s, first token 40 s"


def test_without_a_file_there_are_no_stages(tmp_path: Path) -> None:
    assert read(tmp_path / "none") == {}


def test_stages_are_noted_where_the_environment_says_and_nowhere_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(TIMELINE_ENV, raising=False)
    mark("ray")
    monkeypatch.setenv(TIMELINE_ENV, str(tmp_path / "t.jsonl"))
    mark("start")
    assert marking("weights", lambda size: size + 1)(1) == 2
    assert read(tmp_path / "t.jsonl").keys() == {"weights_s"}


@pytest.mark.engine
def test_vllms_workers_have_the_stages_that_are_marked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from vllm.v1.worker.cpu_worker import CPUWorker
    from vllm.v1.worker.gpu_worker import Worker

    for name in ("load_model", "initialize_from_config"):
        assert getattr(CPUWorker, name) is getattr(Worker, name)  # the CPU's worker has them of its base
        monkeypatch.setattr(Worker, name, getattr(Worker, name))
    monkeypatch.setattr(timeline, "is_worker", lambda: True)
    monkeypatch.setenv(TIMELINE_ENV, str(tmp_path / "t.jsonl"))
    timeline.mark_worker_stages()
    assert CPUWorker.load_model.__wrapped__
