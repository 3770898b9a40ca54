import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec
import pytest

from serve_app.errors import BadSettings, ScoringFailed, StoreError
from serve_app.workloads.icm.evaluation.gold import Gold, accuracy_by_iteration
from serve_app.workloads.icm.schedule import SearchSettings
from serve_app.workloads.icm.scoring.prompts import Prompt
from serve_app.workloads.icm.scoring.protocol import Failure, LabelLogprobs
from serve_app.workloads.icm.search.runs import CHECKPOINT, TRACE, Run
from serve_app.workloads.icm.search.search import Search
from serve_app.workloads.icm.search.state import Step
from tests.workloads.icm.models import Noise, dataset

DATA = dataset(8, ["exclusion"] * 4, group=2)
ASKED = SearchSettings(iterations=60, num_seed=4, seed=2, alpha=2)


class Dies(Noise):
    """Answers `calls` calls and then none."""

    def __init__(self, seed: int, calls: int) -> None:
        super().__init__(seed)
        self.left = calls

    def __call__(self, prompts):  # type: ignore[no-untyped-def]
        self.left -= 1
        return super().__call__(prompts) if self.left >= 0 else [Failure("gone")] * len(prompts)


def follow(folder: Path, score: Noise, asked: SearchSettings = ASKED) -> Iterator[Step]:
    run = Run(folder)
    return run.follow(Search(DATA, asked, score, run.begin(asked, DATA)), {"testbed": "test"})


def steps(folder: Path) -> list[Step]:
    return [step.without_costs() for step in Run(folder).steps()]


@pytest.mark.parametrize("share", [0.2, 0.5, 0.9])
@pytest.mark.parametrize("alpha", [2.0, None])
def test_a_run_that_is_cut_off_goes_on_exactly_as_if_it_had_not_been(
    tmp_path: Path, alpha: float | None, share: float
) -> None:
    asked = SearchSettings(iterations=300 if alpha is None else 60, num_seed=4, seed=2, alpha=alpha)
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    model = Noise(4)
    list(follow(whole, model, asked))
    calls = int(share * len(model.sizes))
    if alpha is None:
        assert Run(whole).load().state.alpha_level > 0
    with pytest.raises(ScoringFailed, match="gone"):
        list(follow(cut, Dies(4, calls), asked))
    assert len(steps(cut)) < asked.iterations
    list(follow(cut, Noise(4), asked))
    assert steps(cut) == steps(whole)
    assert Run(cut).load().state == Run(whole).load().state


def test_lines_of_the_trace_beyond_the_checkpoint_are_done_again(tmp_path: Path) -> None:
    first = follow(tmp_path, Noise(4))
    while not next(first).calls:
        pass
    kept = (tmp_path / CHECKPOINT).read_bytes()
    length = len(steps(tmp_path))
    list(first)
    (tmp_path / CHECKPOINT).write_bytes(kept)  # as if killed after the trace was written, and before the checkpoint
    assert len(steps(tmp_path)) > length
    list(follow(tmp_path, Noise(4)))
    assert [step.iteration for step in steps(tmp_path)] == list(range(1, 61))


def test_a_save_that_is_interrupted_is_done_again_and_lines_without_a_checkpoint_are_dropped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sync = os.fsync
    interrupts = [False, False, True]  # the third sync is the second save's of the trace: its lines are written

    def fsync(file: int) -> None:
        sync(file)
        if interrupts and interrupts.pop(0):
            raise KeyboardInterrupt

    (tmp_path / TRACE).write_text("of a run that was killed before its first checkpoint\n")
    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(KeyboardInterrupt):
        list(follow(tmp_path, Noise(4)))
    assert [step.iteration for step in steps(tmp_path)] == list(range(1, Run(tmp_path).load().state.iteration + 1))
    list(follow(tmp_path, Noise(4)))
    assert [step.iteration for step in steps(tmp_path)] == list(range(1, 61))


def test_a_longer_run_goes_on_with_a_shorter_one(tmp_path: Path) -> None:
    list(follow(tmp_path / "a", Noise(4), ASKED.model_copy(update={"iterations": 25})))
    list(follow(tmp_path / "a", Noise(4)))
    list(follow(tmp_path / "b", Noise(4)))
    assert steps(tmp_path / "a") == steps(tmp_path / "b")


def test_a_run_with_other_settings_or_data_is_refused_and_the_difference_named(tmp_path: Path) -> None:
    list(follow(tmp_path, Noise(4), ASKED.model_copy(update={"iterations": 5})))
    with pytest.raises(BadSettings, match="holds a run with alpha 2.0, not 3.0"):
        Run(tmp_path).begin(SearchSettings(**{**ASKED.model_dump(), "alpha": 3.0}), DATA)
    with pytest.raises(BadSettings, match="on other data"):
        Run(tmp_path).begin(ASKED, dataset(9))


def test_a_folder_without_a_run_or_with_a_spoilt_one_says_so(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="nothing to go on from"):
        Run(tmp_path).load()
    (tmp_path / CHECKPOINT).write_text("{")
    with pytest.raises(StoreError, match="cannot be read"):
        Run(tmp_path).load()


def test_a_trace_that_lost_lines_is_refused(tmp_path: Path) -> None:
    list(follow(tmp_path, Noise(4)))
    (tmp_path / TRACE).write_text("")
    with pytest.raises(StoreError, match="shorter than its checkpoint"):
        Run(tmp_path).begin(ASKED, DATA)


def test_accuracy_by_iteration_follows_the_accepted_changes_from_the_first_labels_on(tmp_path: Path) -> None:
    run = Run(tmp_path)
    search = Search(DATA, ASKED, Noise(4))
    followed = list(run.follow(search, {}))
    gold = Gold({example.id: index % 2 for index, example in enumerate(DATA.examples)})
    curve = accuracy_by_iteration(run.load().start, followed, gold)
    labels = search.state.current.labels
    right = sum(label == index % 2 for index, label in enumerate(labels) if label in (0, 1))
    known = sum(label in (0, 1) for label in labels)
    _, share, count = curve[-1]
    assert share == pytest.approx(right / known)
    assert count == known
    assert [at for at, _, _ in curve] == sorted({at for at, _, _ in curve})


def test_the_trace_says_of_every_proposal_what_became_of_it(tmp_path: Path) -> None:
    def score(prompts: Sequence[Prompt]) -> list[LabelLogprobs]:
        return [answer._replace(cached_tokens=answer.prompt_tokens // 2) for answer in Noise(4)(prompts)]

    run = Run(tmp_path)
    list(run.follow(Search(DATA, ASKED, score), {}))
    lines = [msgspec.json.decode(line) for line in (tmp_path / TRACE).read_bytes().splitlines()]
    assert [line["iteration"] for line in lines] == list(range(1, 61))
    assert {"example", "changes", "delta", "temperature", "alpha", "accepted", "utility"} <= lines[0].keys()
    shares = [line["cached_tokens"] / line["prompt_tokens"] for line in lines if line["calls"]]
    assert shares
    assert all(share == pytest.approx(0.5, abs=0.01) for share in shares)
