"""What a job is asked for and what it answers: the bodies of the control routes."""

from __future__ import annotations

from collections.abc import Iterable
from enum import StrEnum
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, ValidationError, model_validator

from serve_app.errors import BadSettings
from serve_app.fields import Frozen
from serve_app.schema import Row, Sampling
from serve_app.settings import POPULATION_PRIORITIES

# csv: any delimited text; xlsx: any workbook.
Format = Literal["csv", "jsonl", "parquet", "xlsx"]
# Routes of the engine that a row may be a request to.
Endpoint = Literal["/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/responses"]


# No model writes more, and what a row could not use is refused with the job.
MOST_TOKENS = 2**24
# Rows of a provider that are open at once.
MOST_OPEN = 10_000
# What a job says nothing about is sampled as a call that says nothing.
DEFAULT = Sampling()


class JobState(StrEnum):
    """Where a job stands.

        submit ──> QUEUED ──> RUNNING ──> COMPLETED                (every row has an answer)
                     │  ▲        ├──────> COMPLETED_WITH_FAILURES  (every row has an outcome, some no answer)
                     │  │        ├──────> FAILED                   (the job itself could not go on)
                     ▼  │        ▼
                 CANCELLED <── cancel
                        │
                     resume, of CANCELLED and FAILED

    A driver that ends leaves its jobs QUEUED or RUNNING; the next one goes on with them. Committed rows stay committed
    in every state.
    """

    QUEUED = "queued"
    RUNNING = "running"
    COMPLETED = "completed"
    COMPLETED_WITH_FAILURES = "completed_with_failures"
    CANCELLED = "cancelled"
    FAILED = "failed"

    @property
    def active(self) -> bool:
        """The driver works on it, or will."""
        return self in (JobState.QUEUED, JobState.RUNNING)

    @property
    def complete(self) -> bool:
        """Every row has an outcome."""
        return self in (JobState.COMPLETED, JobState.COMPLETED_WITH_FAILURES)

    @property
    def resumable(self) -> bool:
        """It ended with rows that may have no outcome."""
        return self in (JobState.CANCELLED, JobState.FAILED)


class Message(Frozen):
    """A chat message; `content` may hold `{column}` fields."""

    role: str = Field(min_length=1)
    content: str


class Generator(Frozen):
    """Rows made by a workload that is installed here (entry points `serve_app.generators`)."""

    name: str = Field(min_length=1)
    arguments: dict[str, Any] = Field(default_factory=dict)


class Price(Frozen):
    """Dollars. Own replicas cost time, external providers cost tokens."""

    replica_hour: float = Field(0.0, ge=0)
    input_per_million_tokens: float = Field(0.0, ge=0)
    output_per_million_tokens: float = Field(0.0, ge=0)

    def cost(self, *, replica_s: float, prompt_tokens: int, completion_tokens: int) -> float | None:
        """Dollars for replicas' time (0 where an external provider answers) and tokens; None where none has a price."""
        tokens = prompt_tokens * self.input_per_million_tokens + completion_tokens * self.output_per_million_tokens
        return replica_s / 3600 * self.replica_hour + tokens / 1e6 or None


class Provider(Frozen):
    """An external OpenAI-compatible endpoint that answers the rows instead of our replicas.

    The key is read from the driver's environment: it is never part of a job.
    """

    base_url: str = Field(pattern="^https?://", description="with /v1, as OpenAI clients have it")
    model: str = Field(min_length=1)
    api_key_env: str = Field("", description="environment variable of the driver that holds the key")
    concurrency: int = Field(1, ge=1, le=MOST_OPEN, description="requests open at once; 1 is sequential")
    batch_rows: int = Field(8, ge=1, le=MOST_OPEN, description="rows handed over together")
    requests_per_minute: float | None = Field(None, gt=0)
    tokens_per_minute: float | None = Field(None, gt=0)
    max_retries: int = Field(6, ge=0, le=1000, description="of one request, with backoff, or as Retry-After says")
    timeout_s: float = Field(120.0, gt=0, le=86_400)


# What a row that is a request says by itself.
NOT_OF_REQUESTS = (
    "generator",
    "provider",
    "prompt",
    "messages",
    "model",
    "labels",
    "max_tokens",
    "temperature",
    "top_p",
    "seed",
    "stop",
    "structured",
    "id_column",
    "length_column",
)


class JobSpec(Frozen):
    """Body of `POST /v1/populations`.

    The population is one of `rows`, `source` and `generator`. A row is {"custom_id", "messages"} or {"custom_id",
    "prompt"}, or, with a template in `prompt` or `messages`, any columns that the template's `{column}` fields name.
    One that its sender could not make is {"custom_id", "error"}: its outcome is `invalid`, with that error.
    With `labels` each row is scored, without it text is generated.
    With `endpoint` a row is a line of an OpenAI batch file, {"custom_id", "method", "url", "body"}, and its answer the
    whole response; what is asked, and how, is then in each body.
    """

    rows: tuple[dict[str, Any], ...] = ()
    source: str = Field("", description="path or URL of a CSV, JSONL, Parquet or Excel file that the driver can read")
    format: Format | None = Field(None, description="of `source`; default: by its name's ending")
    generator: Generator | None = None
    id_column: str = Field(
        "custom_id",
        min_length=1,
        description="without it in the data: `id`, if its values differ; else row-1, row-2, …",
    )
    length_column: str = Field("", description="column with the answer's expected length in tokens; longest go first")
    prompt: str | None = Field(None, description="template of plain text")
    messages: tuple[Message, ...] = Field((), description="template of a chat")
    workload: str = Field("prompts", min_length=1, description="name and version, part of each row's identity")
    model: str | None = Field(None, description="the served model's name; default: the one that is served")
    endpoint: Endpoint | None = Field(None, description="the rows are requests to this route of the engine")
    labels: tuple[str, ...] = Field((), max_length=128)
    max_tokens: int = Field(DEFAULT.max_tokens, ge=1, le=MOST_TOKENS)
    temperature: float = Field(DEFAULT.temperature, ge=0, le=2)
    top_p: float = Field(DEFAULT.top_p, gt=0, le=1)
    seed: int | None = Field(DEFAULT.seed, ge=-(2**63), le=2**63 - 1)
    stop: tuple[Annotated[str, Field(min_length=1)], ...] = DEFAULT.stop
    structured: dict[str, Any] | None = DEFAULT.structured
    priority: int | None = Field(None, ge=POPULATION_PRIORITIES[0], le=POPULATION_PRIORITIES[1], description="vLLM's; "
                                 "lower goes first, online requests have 0")  # fmt: skip
    price: Price = Price()
    reuse: bool = Field(False, description="take answers to the same questions from the store's other jobs")
    provider: Provider | None = None
    metadata: dict[str, Any] = Field(default_factory=dict, description="the caller's own, given back as it is")
    job_id: str | None = Field(None, description="default: made from workload and time")

    @model_validator(mode="after")
    def _one_population(self) -> JobSpec:
        given = [name for name in ("rows", "source", "generator") if getattr(self, name)]
        if len(given) != 1:
            raise ValueError(f"give one of rows, source and generator; got {', '.join(given) or 'none'}")
        if self.prompt is not None and self.messages:
            raise ValueError("give prompt or messages, not both")
        if self.endpoint is not None and (idle := [name for name in NOT_OF_REQUESTS if self._differs(name)]):
            raise ValueError(f"with endpoint, each row's body says what is asked: leave out {', '.join(idle)}")
        return self

    @classmethod
    def parse(cls, fields: dict[str, Any]) -> JobSpec:
        """A spec from JSON's fields. Raises BadSettings that names the wrong ones."""
        try:
            return cls.model_validate(fields)
        except ValidationError as error:
            raise BadSettings.of_fields(error.errors()) from error

    @classmethod
    def of(cls, rows: Iterable[Row], **fields: Any) -> JobSpec:
        """A spec of these rows; `fields` are the other fields. Raises BadSettings."""
        made = [_fields_of(row) for row in rows]
        if any("expected_tokens" in row for row in made):
            fields["length_column"] = "expected_tokens"
            made = [{"expected_tokens": 0, **row} for row in made]
        return cls.parse({"rows": made, **fields})

    def _differs(self, name: str) -> bool:
        return bool(getattr(self, name) != type(self).model_fields[name].get_default(call_default_factory=True))

    @property
    def sampling(self) -> Sampling:
        """The sampling fields."""
        return Sampling(self.max_tokens, self.temperature, self.top_p, self.seed, tuple(self.stop), self.structured)


def _fields_of(row: Row) -> dict[str, Any]:
    """The row as JobSpec's `rows` have it."""
    fields: dict[str, Any] = {"custom_id": row.custom_id}
    if row.error is not None:
        fields["error"] = row.error
    elif row.prompt is None:
        fields["messages"] = row.messages
    else:
        fields["prompt"] = row.prompt
    return fields | ({"expected_tokens": row.expected_tokens} if row.expected_tokens else {})


class JobStatus(BaseModel):
    """What `GET /v1/populations/{id}` answers. Counts are of committed rows; rates are of the present run, `run_s`
    the time of all runs. `total` is 0 until the population was counted."""

    id: str
    object: str = "population"
    state: JobState
    message: str = ""
    workload: str = ""
    model: str = ""
    folder: str = ""
    metadata: dict[str, Any] = {}
    simulated: bool = False
    total: int = 0
    ok: int = 0
    invalid: int = 0
    failed: int = 0
    reused: int = 0
    replicas_available: int = 0
    replicas_chosen: int = 0
    replicas_wanted: int = 0
    rows_per_replica: int = 0
    tensor_parallel_size: int = 0
    rows_by_replica: dict[str, int] = {}
    rows_per_s_by_replica: dict[str, float] = {}
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    cached_share: float = 0.0
    rows_per_s: float = 0.0
    eta_s: float | None = None
    run_s: float = 0.0
    price: Price = Price()
    cost: float | None = None

    @property
    def done(self) -> int:
        """Committed rows."""
        return self.ok + self.invalid + self.failed

    @property
    def unanswered(self) -> int:
        """Committed rows without a value."""
        return self.invalid + self.failed

    @property
    def group(self) -> str:
        """Of a job that is one of several, what they have in common, by its metadata; else ""."""
        given = self.metadata.get("group")
        return given if isinstance(given, str) else ""
