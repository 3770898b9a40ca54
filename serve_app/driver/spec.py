"""What a job is asked for and what it answers: the bodies of the control routes."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

State = Literal["queued", "running", "interrupted", "completed", "completed_with_failures", "cancelled", "failed"]
FINISHED: tuple[State, ...] = ("completed", "completed_with_failures")


class RowSpec(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)
    custom_id: str = Field(min_length=1)
    messages: tuple[dict[str, str], ...] = Field(min_length=1)


class JobSpec(BaseModel):
    """Body of `POST /v1/populations`. With `labels` each row is scored, without it text is generated."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    rows: tuple[RowSpec, ...] = Field(min_length=1)
    workload: str = Field("prompts", min_length=1, description="name and version, part of each row's identity")
    labels: tuple[str, ...] = ()
    max_tokens: int = Field(16, ge=1)
    temperature: float = Field(0.0, ge=0)
    top_p: float = Field(1.0, gt=0, le=1)
    seed: int | None = None
    stop: tuple[str, ...] = ()
    structured: dict[str, Any] | None = None
    metadata: dict[str, Any] = Field(default_factory=dict, description="the caller's own, given back as it is")
    job_id: str | None = Field(None, description="default: made from workload and time")


class JobStatus(BaseModel):
    """What `GET /v1/populations/{id}` answers. Counts are of committed rows; the rate is of the present run, `run_s`
    the time of all runs."""

    id: str
    object: str = "population"
    state: State
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
    replicas_available: int = 0
    replicas_chosen: int = 0
    rows_per_replica: int = 0
    tensor_parallel_size: int = 0
    rows_by_replica: dict[str, int] = {}
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    rows_per_s: float = 0.0
    eta_s: float | None = None
    run_s: float = 0.0

    @property
    def done(self) -> int:
        """Committed rows."""
        return self.ok + self.invalid + self.failed
