"""Settings: frozen models that *are* the Serve application arguments in config.yaml, config.gpu.yaml and k8s/.

An unknown key is an error. The engine's own options keep vLLM's names and are checked against the
installed vLLM by `engine/options.py`.
"""

from __future__ import annotations

import os
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, model_validator

REPLICAS_APP = "replicas"
REPLICA_DEPLOYMENT = "Replica"
DRIVER_APP = "populations"
FILES_APP = "files"
BATCHES_APP = "batches"
MODELS_APP = "models"
# The key that our own clients and checks send, if the server asks for one.
API_KEY_ENV = "SERVE_APP_API_KEY"
# vLLM's priority of a health probe: lower goes first, so it does not wait behind anything.
PROBE_PRIORITY = -1000
# Where vLLM's `additional_config` has SharingSettings, which our scheduler in EngineCore's process reads.
SHARING_KEY = "serve_app_sharing"


def api_key() -> str:
    """This process's key; "" if it has none."""
    return os.environ.get(API_KEY_ENV, "")


def api_key_headers() -> dict[str, str]:
    """What a request of our own carries."""
    return {"authorization": f"Bearer {api_key()}"} if api_key() else {}


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
    """When an engine counts as hung; see `engine/health/watchdog.py`."""

    stall_timeout_s: float = Field(15.0, gt=0, description="it has work, finishes no step and one of its workers uses "
                                   "no processor time (on CPU, where that tells slow from hung)")  # fmt: skip
    step_timeout_s: float | None = Field(None, gt=0, description="it has work and finishes no step, whatever its "
                                         "workers do; null: 900 on CPU, 60 on GPUs")  # fmt: skip
    start_timeout_s: float = Field(900.0, gt=0, description="from loaded weights to the first token")


class SharingSettings(Frozen):
    """What populations get of an engine that answers online requests too; see `engine/scheduler.py`.

    Obeyed where the engine's `scheduler_cls` is not given; all but `max_step_s` where its `scheduling_policy` is
    `priority`.
    """

    population_step_tokens: int | None = Field(64, ge=0, description="of each step, beside running online requests; "
                                               "null: vLLM's own order")  # fmt: skip
    online_linger_s: float = Field(5.0, ge=0, description="after the last one, the same for so long")
    standby_step_tokens: int | None = Field(512, ge=1, description="of each step, while an online request may come; "
                                            "null: whole steps")  # fmt: skip
    standby_s: float = Field(600.0, ge=0, description="after an online request, another one may come for so long")
    max_step_s: float | None = Field(1.0, gt=0, description="a step takes as many tokens as this engine was seen to "
                                     "compute in so long, whosever they are; null: as vLLM has it")  # fmt: skip


class ShardingSettings(Frozen):
    """When and how a list of prompts in one `/v1/completions` call is cut; see `serving/requests/sharding.py`."""

    threshold: int | None = Field(32, ge=1, description="longer lists are cut; null: none is")
    piece_prompts: int = Field(8, ge=1, description="of a piece, at least")
    open_pieces: int = Field(2, ge=1, description="of one request at one replica, so that one queues as one computes")
    max_attempts: int = Field(3, ge=1, description="of a piece, each on another replica")
    max_requests: int = Field(64, ge=1, description="cut by one replica at once; further ones it answers alone. Well "
                              "below max_ongoing_requests, or replicas could wait for each other's pieces")  # fmt: skip

    def piece_size(self, prompts: int, replicas: int) -> int:
        """Prompts of a piece: half of a replica's share is open at the start, the rest goes to whoever is free."""
        return max(self.piece_prompts, -(-prompts // (2 * self.open_pieces * replicas)))


class RoutingSettings(Frozen):
    """Which replica takes a request of a session; see `serving/router.py`."""

    session_affinity: bool = Field(True, description="requests of one session go to one replica, whose prefix cache "
                                   "has them; false: load alone decides")  # fmt: skip
    session_slack_requests: int = Field(8, ge=0, description="a session leaves its replica once more requests than "
                                        "this are open there")  # fmt: skip
    session_load_factor: float = Field(1.5, ge=1, description="beyond this multiple of the others' mean")


class AccessSettings(Frozen):
    """Who may use an application's HTTP routes, and how much of it; see `serving/gate` (`middleware.py`, `keys.py`)."""

    key_files: tuple[str, ...] = Field((), description="files of API keys (`serve-app keys`), relative to where Serve "
                                       "was started; none: anybody may")  # fmt: skip
    open_paths: tuple[str, ...] = Field(("/health", "/ping"), description="need no key; relative to the route prefix")
    max_body_bytes: int | None = Field(64 * 2**20, ge=1, description="of a request; null: any")
    max_prompt_tokens: int | None = Field(None, ge=1, description="of one prompt; null: what the model takes")
    request_timeout_s: float | None = Field(None, gt=0, description="from request to the answer's end; null: none")
    write_timeout_s: float | None = Field(60.0, gt=0, description="how long a client may not read, where it can be "
                                          "seen (`serving/gate/exchange.py`)")  # fmt: skip
    max_inflight_requests: int | None = Field(448, ge=1, description="POST requests at one replica; further ones get "
        "429. Below its max_ongoing_requests of 512, which peers and the driver share, so that we answer, not "
        "Serve's queue; null: none")  # fmt: skip
    log_requests: bool = Field(True, description="a line of JSON for each request, by the logger serve_app.request")
    log_bodies: bool = Field(False, description="with the first 64 KiB of prompt and answer: private data")


class ControlAccessSettings(AccessSettings):
    """The same for the driver's routes, where files are uploaded, and jobs are asked for by many."""

    max_body_bytes: int | None = Field(16 * 2**30, ge=1, description="of a request; null: any")
    max_inflight_requests: int | None = Field(None, ge=1, description="POST requests at once; null: any")


class ReplicaSettings(Frozen):
    """Arguments of the `replicas` application.

    `engine` holds any option of vLLM's AsyncEngineArgs and of its OpenAI front end, by vLLM's own names.
    `model` in it may also name a prepared model (`smollm2-135m-instruct`).
    """

    engine: dict[str, Any] = Field(default_factory=dict)
    health: HealthSettings = HealthSettings()
    sharing: SharingSettings = SharingSettings()
    sharding: ShardingSettings = ShardingSettings()
    access: AccessSettings = AccessSettings()
    routing: RoutingSettings = RoutingSettings()
    admin_routes: tuple[str, ...] = Field((), description="vLLM's administrative routes to keep; see serving/routes.py")
    simulated: SimulatedSettings | None = None


class ServedApplication(Frozen):
    """An application of `serve_app.serving.apps:replicas` in the same config file."""

    name: str = Field(min_length=1)
    models: tuple[str, ...] = Field((), description="names that it has also while none of its replicas runs; all that "
                                    "the running ones list, adapters too, is found out")  # fmt: skip


class ModelsSettings(Frozen):
    """Arguments of the `models` application."""

    applications: tuple[ServedApplication, ...] = Field(min_length=1, description="a request without a model goes to "
                                                        "the first; so does a model that both serve")  # fmt: skip
    access: AccessSettings = Field(AccessSettings(), description="of what is answered here; what is handed on obeys "
                                   "its application's own")  # fmt: skip

    @model_validator(mode="after")
    def _without_doubles(self) -> ModelsSettings:
        for field, names in (
            ("applications.name", [application.name for application in self.applications]),
            ("applications.models", [model for application in self.applications for model in application.models]),
        ):
            if twice := sorted({name for name in names if names.count(name) > 1}):
                raise ValueError(f"{field}: {', '.join(twice)} is there twice")
        return self


class DriverSettings(Frozen):
    """Arguments of the `populations` application.

    `chunk_rows` rows go to a replica in one call, and up to a window of rows is open to each replica, so that some
    queue while others compute. Both are small on purpose: what is lost with a replica is at most a window, and 8×64
    beat 1×512 by half in throughput (ray#52634). The window starts at `window_rows` and follows the engine's queue.
    """

    replicas: str = Field(REPLICAS_APP, description="the application whose replicas work, where there are several")
    store: str = Field("runs", min_length=1, description="folder or URL (s3://…) of the jobs; a folder is relative to "
                       "where Serve was started")  # fmt: skip
    chunk_rows: int = Field(64, ge=1)
    min_chunk_rows: int = Field(4, ge=1, description="chunks shrink to it when little is left")
    window_rows: int = Field(192, ge=1)
    max_window_rows: int = Field(1024, ge=1)
    backlog_rows: int = Field(16_384, ge=1, description="rows of a job that are held in memory at once")
    max_attempts: int = Field(
        5, ge=1, description="failures of a row by itself before it is `failed`; replicas lost under it do not count"
    )
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
    access: ControlAccessSettings = ControlAccessSettings()
    provider_keys: dict[str, str] = Field(default_factory=dict, description="environment variables that jobs may name "
        "as a provider's `api_key_env`, each with the address that its key may be sent to, as {OPENAI_API_KEY: "
        "https://api.openai.com/v1}. Asked only where `access.key_files` are set: else all clients are the "
        "operator's own")  # fmt: skip
    source_folders: tuple[str, ...] = Field((), description="folders of the driver's machine in which jobs may name a "
        "`source`, where `access.key_files` are set; URLs and uploads need none")  # fmt: skip

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
