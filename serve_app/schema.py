"""The plain frozen values that cross a process: prompts, chunks, completions, outcomes.

Knows shapes and units. Does not know who sends or who computes. Token ids and log-probabilities are
tuples, so that every value here hashes, compares and pickles.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

Status = Literal["ok", "invalid", "failed"]


@dataclass(frozen=True, slots=True)
class Sampling:
    """How completions are drawn. Names and meanings are vLLM's SamplingParams'.

    `structured` is vLLM's StructuredOutputsParams as a mapping, e.g. {"choice": ["yes", "no"]} or
    {"json": schema}.
    """

    max_tokens: int = 16
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    structured: dict[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class Row:
    """One row of a population, rendered: the caller's id and the chat messages that ask about it."""

    custom_id: str
    messages: tuple[dict[str, str], ...]


@dataclass(frozen=True, slots=True)
class Request:
    """What the whole population asks of the engine.

    With `labels` the answer is the exact log-probability of each label as the next token (*score* mode:
    one generated token, `sampling` unused); without, it is generated text.
    """

    model: str
    workload: str
    labels: tuple[str, ...] = ()
    sampling: Sampling = field(default_factory=Sampling)


@dataclass(frozen=True, slots=True)
class Chunk:
    """Rows that one replica computes in one call: `prompts` holds one tuple of token ids a row."""

    chunk_id: int
    prompts: tuple[tuple[int, ...], ...]
    label_ids: tuple[int, ...] = ()
    sampling: Sampling = field(default_factory=Sampling)
    priority: int = 0


@dataclass(frozen=True, slots=True)
class Completion:
    """What the engine gave for one prompt: text or label log-probabilities (natural logarithms), or an error.

    `invalid` is a prompt that no engine would take (too long, say); `failed` one that another try may answer.
    """

    status: Status = "ok"
    text: str | None = None
    label_logprobs: tuple[float, ...] = ()
    finish_reason: str | None = None
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    latency_ms: float = 0.0
    error: str | None = None


@dataclass(frozen=True, slots=True)
class EngineInfo:
    """What an engine says of itself, once it is ready."""

    model: str
    engine_version: str
    tensor_parallel_size: int
    max_model_len: int
    prefix_caching: bool
    simulated: bool
    tokenizer: str = ""
    cpu_binding: str = ""
    worker_pids: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class ReplicaInfo:
    """A running replica: its Serve replica id, its process, the ids of its GPUs and its engine."""

    replica_id: str
    node_id: str
    pid: int
    accelerators: tuple[str, ...]
    engine: EngineInfo


@dataclass(frozen=True, slots=True)
class ChunkResult:
    """One completion a prompt of the chunk, in the chunk's order, and who computed them."""

    chunk_id: int
    replica: ReplicaInfo
    completions: tuple[Completion, ...]


@dataclass(frozen=True, slots=True)
class Outcome:
    """The one committed result of a row. `failed` and `invalid` rows have an error and never a value.

    `value` is {"logprobs": {label: natural log-probability}, "mass": summed probability of the labels} in
    score mode and {"text": …, "finish_reason": …} in generation.
    """

    custom_id: str
    content_hash: str
    status: Status
    value: dict[str, Any] | None
    error: str | None
    attempts: int
    replica: str | None
    model: str
    engine_version: str | None
    simulated: bool
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    latency_ms: float
    finished_at: str

    def to_json(self) -> str:
        """One JSON line, without the line's end, in ASCII: readers that split lines know more line ends than JSON."""
        return json.dumps(asdict(self), separators=(",", ":"))

    @classmethod
    def from_json(cls, line: str | bytes) -> Outcome:
        """Inverse of `to_json`. Raises ValueError or TypeError on anything else."""
        return cls(**json.loads(line))


def content_hash(request: Request, row: Row) -> str:
    """Identity of a row's work: SHA-256 over workload, model, labels, sampling and rendered prompt, 32 hex digits.

    The caller's id is no part of it: the same question asked under two ids is the same work.
    """
    work = json.dumps([asdict(request), row.messages], ensure_ascii=False, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(work.encode()).hexdigest()[:32]
