import math
from typing import Any

import pytest

from serve_app.client.replicas import ReplicaClient
from serve_app.errors import BadSettings, ScoringFailed
from serve_app.schema import Outcome
from serve_app.spec import JobSpec, JobState, JobStatus
from serve_app.workloads.icm.schedule import SearchSettings
from serve_app.workloads.icm.scoring.preflight import preflight
from serve_app.workloads.icm.scoring.prompts import Prompt
from serve_app.workloads.icm.scoring.protocol import Failure, LabelLogprobs, ask
from serve_app.workloads.icm.scoring.scorers import PopulationScorer, ReplicaScorer
from tests.fakes import FakePool
from tests.workloads.icm.models import Noise, dataset

PROMPTS = [Prompt(f"e{i}", f"text {i}", (" no", " yes")) for i in range(3)]


class FakeServer:
    """The part of PopulationClient that a scorer uses; `failures` are the errors of rows by id."""

    def __init__(self, failures: dict[str, str] | None = None, message: str = "") -> None:
        self.failures, self.message = failures or {}, message
        self.jobs: list[JobSpec] = []
        self.deleted: list[str] = []

    def submit(self, spec: JobSpec) -> str:
        self.jobs.append(spec)
        return str(spec.job_id)

    def wait(self, job_id: str) -> JobStatus:
        return JobStatus(id=job_id, state=JobState.FAILED if self.message else JobState.COMPLETED, message=self.message)

    def outcomes(self, job_id: str) -> list[Outcome]:
        spec = self.jobs[-1]
        if self.message:
            return []
        return [self._outcome(row["custom_id"], spec.labels) for row in reversed(spec.rows)]

    def delete(self, job_id: str) -> None:
        self.deleted.append(job_id)

    def _outcome(self, custom_id: str, labels: tuple[str, ...]) -> Outcome:
        error = self.failures.get(custom_id)
        value = None if error else {"logprobs": {label: -1.0 - int(custom_id) - n for n, label in enumerate(labels)}}
        status: Any = "invalid" if error else "ok"
        return Outcome(custom_id, "h", status, value, error, 1, "r", "m", "v", False, 100, 64, 1, 5.0, "2026")


def population(server: FakeServer, **request: Any) -> PopulationScorer:
    return PopulationScorer(server, **request)  # type: ignore[arg-type]


def test_all_prompts_are_one_population_answered_in_order_and_removed() -> None:
    server = FakeServer()
    found = population(server, model="m", provider={"base_url": "https://x/v1", "model": "m"})(PROMPTS)
    assert found == [LabelLogprobs((-1.0 - i, -2.0 - i), 100, 64) for i in range(3)]
    (spec,) = server.jobs
    assert [row["prompt"] for row in spec.rows] == ["text 0", "text 1", "text 2"]
    assert spec.labels == (" no", " yes")
    assert spec.provider is not None
    assert spec.provider.base_url == "https://x/v1"
    assert server.deleted == [spec.job_id]


def test_a_chats_prompt_is_a_message() -> None:
    server = FakeServer()
    population(server)([Prompt("e", "hello", ("no", "yes"), chat=True)])
    assert server.jobs[0].rows[0]["messages"] == ({"role": "user", "content": "hello"},)


def test_a_row_without_an_answer_is_a_failure_and_asking_for_it_an_error_that_names_it_and_the_fix() -> None:
    scorer = population(FakeServer({"1": "the prompt has 5000 tokens, max_model_len is 4096"}))
    assert scorer(PROMPTS)[1] == Failure("the prompt has 5000 tokens, max_model_len is 4096", invalid=True)
    with pytest.raises(ScoringFailed, match=r"example 'e1' \(1 of 3.*5000 tokens.*lower --batch-size"):
        ask(scorer, PROMPTS)


def test_a_word_of_two_tokens_is_named_with_the_fix() -> None:
    server = FakeServer(message="labels: ' yes' is 2 tokens for this model; a label must be one")
    with pytest.raises(BadSettings, match=r"' yes' is 2 tokens.*--words"):
        population(server)(PROMPTS)


def test_a_job_that_ends_without_answers_says_why() -> None:
    with pytest.raises(ScoringFailed, match="ended failed: no replica"):
        population(FakeServer(message="no replica"))(PROMPTS)


def test_replicas_are_asked_by_handle_and_words_that_cannot_be_told_apart_are_named() -> None:
    with ReplicaScorer(ReplicaClient(FakePool(["a", "b"]))) as score:
        plain = [Prompt(f"e{i}", f"text {i}", ("no", "yes")) for i in range(2)]
        assert score(plain) == [LabelLogprobs((-1.0, -2.0), 6, 0)] * 2
        chat = [Prompt("e", "hi", ("no", "yes"), chat=True)]
        assert score(chat) == [LabelLogprobs((-1.0, -2.0), 2, 0)]
        with pytest.raises(BadSettings, match=r"character of their own.*--words"):
            score([Prompt("e", "t", (" a", " ab"))])


def test_words_of_one_call_must_agree() -> None:
    with pytest.raises(BadSettings, match="same label words"):
        population(FakeServer())([*PROMPTS, Prompt("e", "t", ("a", "b"))])


def test_a_probability_that_is_no_number_stops_the_search() -> None:
    with pytest.raises(ScoringFailed, match="example 'e0'.*not finite"):
        ask(lambda prompts: [LabelLogprobs((math.nan, -1.0))] * 3, PROMPTS)
    with pytest.raises(ScoringFailed, match="gave 1 answers to 3"):
        ask(lambda prompts: [LabelLogprobs((-1.0, -1.0))], PROMPTS)


def test_the_longest_prompt_is_tried_first_and_the_longest_row_named() -> None:
    score = Noise()
    assert "probability of the two label words 1" in preflight(dataset(9), SearchSettings(), score)
    assert score.sizes == [1]
    with pytest.raises(ScoringFailed, match="all 12 examples.*too long.*the longest row is 'e10' with 13 characters"):
        preflight(dataset(12), SearchSettings(), lambda prompts: [Failure("too long", invalid=True)])
