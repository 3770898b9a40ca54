"""The plain frozen values that cross a process: rows, chunks, completions, outcomes.

Knows shapes and units. Does not know who sends or who computes; what a row is called between them is in
`dispatch/rows.py`. msgspec structs: they hash, compare, pickle and become JSON as they are, several times faster than
dataclasses do; a population has millions of them.
"""

from __future__ import annotations

import hashlib
import sys
from array import array
from typing import Any, Literal

import msgspec

Status = Literal["ok", "invalid", "failed"]


class Sampling(msgspec.Struct, frozen=True):
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


class Row(msgspec.Struct, frozen=True):
    """One row of a population, rendered: the caller's id and what is asked, as chat messages or as plain text.

    `expected_tokens` is a hint of the answer's length, 0 if unknown: long answers start first. A row that could
    not be read or rendered has an `error` and nothing to ask; its outcome is `invalid`.
    """

    custom_id: str
    messages: tuple[dict[str, str], ...] = ()
    prompt: str | None = None
    expected_tokens: int = 0
    error: str | None = None


class RowKey(msgspec.Struct, frozen=True):
    """Which row it is, wherever it is: the caller's id, and the hash of what is asked (see `Identity`)."""

    custom_id: str
    content_hash: str


class Request(msgspec.Struct, frozen=True):
    """What the whole population asks of the engine.

    With `labels` the answer is the exact log-probability of each label as the next token (*score* mode:
    one generated token, `sampling` unused); without, it is generated text.
    """

    model: str
    workload: str
    labels: tuple[str, ...] = ()
    sampling: Sampling = Sampling()


class Chunk(msgspec.Struct, frozen=True):
    """Rows that one replica computes in one call.

    Each prompt is its token ids by `pack_tokens`; a pool that takes messages (an external provider) gets the
    row's messages as JSON instead. With `path` each is the JSON body of a request to that route of the engine's
    HTTP application, and labels and sampling are unused.
    """

    chunk_id: int
    prompts: tuple[bytes, ...]
    label_ids: tuple[int, ...] = ()
    sampling: Sampling = Sampling()
    priority: int = 0
    path: str = ""


class HttpResponse(msgspec.Struct, frozen=True):
    """What the engine's HTTP application answered to one row; `body` is JSON."""

    status_code: int
    request_id: str
    body: bytes


class Completion(msgspec.Struct, frozen=True):
    """What the engine gave for one prompt: text or label log-probabilities (natural logarithms), or an error.

    `invalid` is a prompt that no engine would take (too long, say); `failed` one that another try may answer.
    A row that is an HTTP request has a `response` in place of text, also where that refuses it.
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
    response: HttpResponse | None = None


class PromptSettings(msgspec.Struct, frozen=True):
    """The engine's own settings by which a chat or a text becomes tokens, beside the tokenizer's name.

    `chat_template` is Jinja text, "" for the tokenizer's own; `chat_template_kwargs` are its variables.
    """

    chat_template: str = ""
    chat_template_kwargs: dict[str, Any] = {}
    tokenizer_revision: str = ""
    slow_tokenizer: bool = False
    trust_remote_code: bool = False


class EngineInfo(msgspec.Struct, frozen=True):
    """What an engine says of itself, once it is ready.

    `identity` is the same for engines that answer alike, whatever they are called: a hash, in hex, of weights,
    tokenizer, chat template, data type and adapters; "" if the engine does not tell (simulated or external ones).
    `dtype_reason` says why it is that one, where nobody asked for one and it is not the model's own.
    """

    model: str
    engine_version: str
    tensor_parallel_size: int
    max_model_len: int
    prefix_caching: bool
    simulated: bool
    tokenizer: str = ""
    cpu_binding: str = ""
    worker_pids: tuple[int, ...] = ()
    dtype: str = ""
    dtype_reason: str = ""
    identity: str = ""
    prompts: PromptSettings = PromptSettings()


class ReplicaInfo(msgspec.Struct, frozen=True):
    """A running replica: its Serve replica id, its process, the ids of its GPUs and its engine."""

    replica_id: str
    node_id: str
    pid: int
    accelerators: tuple[str, ...]
    engine: EngineInfo


class Finished(msgspec.Struct, frozen=True):
    """Rows of a chunk that finished together: completions by the prompt's place in the chunk, and who computed them.

    `waiting` is how many requests stood in the engine's queue then, not yet scheduled.
    """

    replica: ReplicaInfo
    completions: dict[int, Completion]
    waiting: int = 0


class Outcome(msgspec.Struct, frozen=True):
    """The one committed result of a row. `failed` and `invalid` rows have an error and never a value.

    `value` is {"logprobs": {label: natural log-probability}, "mass": summed probability of the labels} in
    score mode and {"text": …, "finish_reason": …} in generation. `error` holds the error of each attempt, in
    order. `reused_from` is the job whose answer to the same question this is, if it was not computed here.
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
    reused_from: str | None = None

    def to_json(self) -> bytes:
        """One JSON line, without the line's end. Split lines at \\n only: text may hold U+2028 and the like."""
        return msgspec.json.encode(self)

    @classmethod
    def from_json(cls, line: str | bytes) -> Outcome:
        """Inverse of `to_json`. Raises msgspec.ValidationError or DecodeError (ValueErrors) on anything else."""
        return _decode_outcome(line)


_decode_outcome = msgspec.json.Decoder(Outcome).decode


class Identity:
    """Content hashes of one request's rows.

    SHA-256 over workload, model, labels, sampling, the engine's identity (`EngineInfo.identity`) and what is asked, 32
    hex digits. The caller's id is no part of it: the same question asked under two ids is the same work. Without the
    engine's identity it is the hash of jobs that were begun before there was one.
    """

    def __init__(self, request: Request, engine: str = "") -> None:
        self._encode = msgspec.json.Encoder(order="sorted").encode
        self._base = hashlib.sha256(self._encode(request) + b"\n")
        if engine:
            self._base.update(engine.encode() + b"\n")

    def content_hash(self, row: Row) -> str:
        """The row's content hash."""
        work = self._base.copy()
        work.update(self._encode(row.messages if row.prompt is None else row.prompt))
        return work.hexdigest()[:32]


def pack_tokens(token_ids: list[int] | tuple[int, ...]) -> bytes:
    """Token ids as big-endian 32-bit numbers, so that byte order is token order and a prefix is a prefix."""
    packed = array("I", token_ids)
    if sys.byteorder == "little":
        packed.byteswap()
    return packed.tobytes()


def unpack_tokens(packed: bytes) -> list[int]:
    """Inverse of `pack_tokens`."""
    token_ids = array("I", packed)
    if sys.byteorder == "little":
        token_ids.byteswap()
    return token_ids.tolist()
