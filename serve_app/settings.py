"""Settings: frozen models that *are* the Serve application arguments in config.yaml, config.gpu.yaml and k8s/.

An unknown key is an error. The engine's own options keep vLLM's names and are checked against the
installed vLLM by `engine/options.py`.
"""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field

REPLICAS_APP = "replicas"
REPLICA_DEPLOYMENT = "Replica"
DRIVER_APP = "populations"


class Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class SimulatedSettings(Frozen):
    """Roofline latency of a simulated engine. The defaults were measured; see `engine/simulated.py`."""

    prefill_ms_per_token: float = Field(0.28, ge=0, description="per prompt token that is not cached")
    step_ms: float = Field(12.0, ge=0, description="fixed time of one engine step")
    max_num_seqs: int = Field(128, ge=1)
    block_size: int = Field(32, ge=1)
    fail_after_chunks: int | None = Field(None, ge=0, description="scripted fault: EngineFailed after so many chunks")


class HealthSettings(Frozen):
    """When an engine counts as hung: it has work and completes no step for `stall_timeout_s`."""

    stall_timeout_s: float = Field(60.0, gt=0)
    start_timeout_s: float = Field(900.0, gt=0)


class ReplicaSettings(Frozen):
    """Arguments of the `replicas` application.

    `engine` holds any option of vLLM's AsyncEngineArgs and of its OpenAI front end, by vLLM's own names.
    `model` in it may also name a prepared model (`smollm2-135m-instruct`).
    """

    engine: dict[str, Any] = Field(default_factory=dict)
    health: HealthSettings = HealthSettings()
    simulated: SimulatedSettings | None = None


class DriverSettings(Frozen):
    """Arguments of the `populations` application.

    `chunk_rows` rows go to a replica in one call and `chunks_in_flight` calls are open to each replica, so
    that one is queued while another computes. Both are small on purpose: what is lost with a replica is
    at most their product, and 8×64 beat 1×512 by half in throughput (ray#52634).
    """

    store: str = Field("runs", min_length=1, description="folder of the jobs, relative to where Serve was started")
    chunk_rows: int = Field(64, ge=1)
    chunks_in_flight: int = Field(3, ge=1)
    max_attempts: int = Field(5, ge=1, description="of a chunk, over all replicas, before its rows are `failed`")
    min_rows_per_replica: int = Field(128, ge=1)
    max_rows_per_replica: int = Field(4096, ge=1)
    commit_rows: int = Field(1000, ge=1, description="commit at least after so many rows")
    commit_seconds: float = Field(1.0, gt=0, description="and at least so often")
    priority: int = Field(
        10, description="vLLM's priority of population work; online requests have 0, lower goes first"
    )
    replica_wait_s: float = Field(900.0, gt=0, description="how long a job waits for a replica before it fails")
