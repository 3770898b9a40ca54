"""Settings: frozen models that *are* the Serve application arguments in config.yaml, config.gpu.yaml and k8s/.

An unknown key is an error. The engine's own options keep vLLM's names and are checked against the
installed vLLM by `engine/options.py`.
"""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field, model_validator

REPLICAS_APP = "replicas"
REPLICA_DEPLOYMENT = "Replica"
DRIVER_APP = "populations"


class Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class SimulatedSettings(Frozen):
    """Roofline latency of a simulated engine. The defaults were measured; see `engine/simulated.py`."""

    prefill_ms_per_token: float = Field(0.88, ge=0, description="per prompt token that is not cached")
    step_ms: float = Field(12.0, ge=0, description="fixed time of one engine step")
    max_num_seqs: int = Field(128, ge=1)
    block_size: int = Field(32, ge=1)
    kv_blocks: int = Field(1092, ge=1, description="blocks that the prefix cache holds; config.yaml's 34,944 tokens")
    fail_after_chunks: int | None = Field(None, ge=0, description="scripted fault: EngineFailed after so many chunks")


class HealthSettings(Frozen):
    """When an engine counts as hung: it has work and completes no step for `stall_timeout_s`."""

    stall_timeout_s: float = Field(60.0, gt=0)
    start_timeout_s: float = Field(900.0, gt=0)


class ShardingSettings(Frozen):
    """When and how a list of prompts in one `/v1/completions` call is cut; see `serving/sharding.py`."""

    threshold: int | None = Field(32, ge=1, description="longer lists are cut; null: none is")
    piece_prompts: int = Field(8, ge=1, description="of a piece, at least")
    open_pieces: int = Field(2, ge=1, description="of one request at one replica, so that one queues as one computes")
    max_attempts: int = Field(3, ge=1, description="of a piece, each on another replica")
    max_requests: int = Field(64, ge=1, description="cut by one replica at once; further ones it answers alone. Well "
                              "below max_ongoing_requests, or replicas could wait for each other's pieces")  # fmt: skip

    def piece_size(self, prompts: int, replicas: int) -> int:
        """Prompts of a piece: half of a replica's share is open at the start, the rest goes to whoever is free."""
        return max(self.piece_prompts, -(-prompts // (2 * self.open_pieces * replicas)))


class ReplicaSettings(Frozen):
    """Arguments of the `replicas` application.

    `engine` holds any option of vLLM's AsyncEngineArgs and of its OpenAI front end, by vLLM's own names.
    `model` in it may also name a prepared model (`smollm2-135m-instruct`).
    """

    engine: dict[str, Any] = Field(default_factory=dict)
    health: HealthSettings = HealthSettings()
    sharding: ShardingSettings = ShardingSettings()
    simulated: SimulatedSettings | None = None


class DriverSettings(Frozen):
    """Arguments of the `populations` application.

    `chunk_rows` rows go to a replica in one call, and up to a window of rows is open to each replica, so that some
    queue while others compute. Both are small on purpose: what is lost with a replica is at most a window, and 8×64
    beat 1×512 by half in throughput (ray#52634). The window starts at `window_rows` and follows the engine's queue.
    """

    store: str = Field("runs", min_length=1, description="folder or URL (s3://…) of the jobs; a folder is relative to "
                       "where Serve was started")  # fmt: skip
    chunk_rows: int = Field(64, ge=1)
    min_chunk_rows: int = Field(4, ge=1, description="chunks shrink to it when little is left")
    window_rows: int = Field(192, ge=1)
    max_window_rows: int = Field(1024, ge=1)
    backlog_rows: int = Field(16_384, ge=1, description="rows of a job that are held in memory at once")
    max_attempts: int = Field(5, ge=1, description="of a chunk, over all replicas, before its rows are `failed`")
    min_rows_per_replica: int = Field(128, ge=1)
    max_rows_per_replica: int = Field(4096, ge=1)
    commit_rows: int = Field(1000, ge=1, description="commit at least after so many rows")
    commit_seconds: float = Field(1.0, gt=0, description="and at least so often")
    priority: int = Field(
        10, description="vLLM's priority of population work; online requests have 0, lower goes first"
    )
    replica_wait_s: float = Field(900.0, gt=0, description="how long a job waits for a replica before it fails")
    store_wait_s: float = Field(300.0, ge=0, description="how long a commit is tried again before the job fails")
    max_running_jobs: int = Field(8, ge=1, description="the others wait their turn")
    rows_per_runner: int = Field(1_000_000, ge=1, description="a larger population is run by more than one process")
    max_runners: int = Field(1, ge=1, description="processes of one job; 1 runs all jobs in the driver itself")

    @model_validator(mode="after")
    def _in_order(self) -> DriverSettings:
        for low, high in (
            ("min_rows_per_replica", "max_rows_per_replica"),
            ("min_chunk_rows", "chunk_rows"),
            ("window_rows", "max_window_rows"),
        ):
            if getattr(self, low) > getattr(self, high):
                raise ValueError(f"{low} {getattr(self, low)} is above {high} {getattr(self, high)}")
        return self
