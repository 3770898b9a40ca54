"""Settings: frozen models of the Serve application arguments in config.yaml, config.gpu.yaml and k8s/.

Unknown keys are errors. `engine/options.py` checks the engine's options, under vLLM's names, against the installed
vLLM.
"""

from __future__ import annotations

import os
from typing import Any

from pydantic import Field, model_validator

from serve_app.addresses import Reach
from serve_app.fields import Frozen

REPLICAS_APP = "replicas"
REPLICA_DEPLOYMENT = "Replica"
DRIVER_APP = "populations"
DRIVER_DEPLOYMENT = "Driver"
FILES_APP = "files"
BATCHES_APP = "batches"
MODELS_APP = "models"
# `RoutingSettings` by application, in JSON, for HAProxy (`serving/haproxy`).
ROUTING_ENV = "SERVE_APP_ROUTING"
# The key of our own clients and checks.
API_KEY_ENV = "SERVE_APP_API_KEY"
# vLLM's priority of health probes; lower goes first.
PROBE_PRIORITY = -1000
# Priorities of populations, first and last. Online requests have 0.
POPULATION_PRIORITIES = (1, 1000)
# `owned_by` of simulated models.
SIMULATED_OWNER = "simulated"
# The key in vLLM's `additional_config` that our scheduler in EngineCore's process reads.
SHARING_KEY = "serve_app_sharing"
# (base_url, environment variable with the key), from the providers' documentation.
PROVIDERS = {
    "openai": ("https://api.openai.com/v1", "OPENAI_API_KEY"),
    "deepseek": ("https://api.deepseek.com/v1", "DEEPSEEK_API_KEY"),
    "openrouter": ("https://openrouter.ai/api/v1", "OPENROUTER_API_KEY"),
}


def api_key() -> str:
    return os.environ.get(API_KEY_ENV, "")


def api_key_headers() -> dict[str, str]:
    return {"authorization": f"Bearer {api_key()}"} if api_key() else {}


class SimulatedSettings(Frozen):
    """Roofline latency of a simulated engine. The defaults were measured; see `engine/simulated/engine.py`."""

    prefill_ms_per_token: float = Field(0.88, ge=0, description="time of a prompt token that is not cached")
    step_ms: float = Field(12.0, ge=0, description="fixed time of one engine step")
    max_num_seqs: int = Field(128, ge=1, description="prompts of one engine step")
    block_size: int = Field(32, ge=1, description="tokens of one block of the prefix cache")
    kv_blocks: int = Field(1092, ge=1, description="blocks that the prefix cache holds; config.yaml's 34,944 tokens")
    embedding_dimensions: int = Field(384, ge=1, le=8192, description="length of the vectors of `/v1/embeddings`, "
                                      "where a request does not say")  # fmt: skip
    fail_after_chunks: int | None = Field(
        None, ge=0, description="the engine fails after this many chunks; null: never"
    )


class HealthSettings(Frozen):
    """When an engine counts as hung; see `engine/health/watchdog.py`."""

    stall_timeout_s: float = Field(10.0, gt=0, description="on CPU: the engine has work, finishes no step, and a "
                                   "worker uses no processor time for this long")  # fmt: skip
    step_timeout_s: float | None = Field(None, gt=0, description="the engine has work and finishes no step for this "
                                         "long; null: 900 on CPU, 60 on GPUs")  # fmt: skip
    start_timeout_s: float = Field(900.0, gt=0, description="time limit from loaded weights to the first token")


class SharingSettings(Frozen):
    """The share of populations on an engine that also answers online requests; see `engine/scheduler.py`.

    Applies unless the engine's `scheduler_cls` is set; all but `max_step_s` need the `scheduling_policy` `priority`.
    """

    population_step_tokens: int | None = Field(64, ge=0, description="population tokens in a step while online "
                                               "requests run; null: vLLM's own order")  # fmt: skip
    online_linger_s: float = Field(5.0, ge=0, description="how long that limit stays after the last online request")
    standby_step_tokens: int | None = Field(512, ge=1, description="population tokens in a step for `standby_s` "
                                            "after an online request; null: no limit")  # fmt: skip
    standby_s: float = Field(600.0, ge=0, description="how long another online request is expected after one")
    max_step_s: float | None = Field(1.0, gt=0, description="target time of a step: its tokens are limited to what "
                                     "this engine was measured to compute in it; null: no limit")  # fmt: skip


class ShardingSettings(Frozen):
    """How a list of prompts in one `/v1/completions` call is split; see `serving/requests/sharding.py`."""

    threshold: int | None = Field(32, ge=1, description="lists of more prompts are spread; null: none is")
    piece_prompts: int = Field(8, ge=1, description="least number of prompts in a piece")
    open_pieces: int = Field(2, ge=1, description="pieces of one request that are open at one replica")
    max_attempts: int = Field(3, ge=1, description="attempts of a piece, each on another replica")
    max_requests: int = Field(64, ge=1, description="requests that one replica spreads at once; it answers further "
                              "ones alone. Keep it well below max_ongoing_requests")  # fmt: skip

    def piece_size(self, prompts: int, replicas: int) -> int:
        """Prompts of a piece. Half of a replica's share is open at the start; free replicas take the rest."""
        return max(self.piece_prompts, -(-prompts // (2 * self.open_pieces * replicas)))


class RoutingSettings(Frozen):
    """Which replica takes a session's request; see `serving/haproxy/sessions.lua`."""

    session_affinity: bool = Field(True, description="requests with the same x-session-id go to the same replica; "
                                   "false: load alone decides")  # fmt: skip
    session_slack_requests: int = Field(
        8, ge=0, description="a session leaves when its replica has more open requests than `session_load_factor` "
        "times the others' mean plus this"
    )  # fmt: skip
    session_load_factor: float = Field(1.5, ge=1, description="see `session_slack_requests`")


class AccessSettings(Frozen):
    """Who may use an application's HTTP routes, with which limits; see `serving/gate` (`middleware.py`, `keys.py`)."""

    key_files: tuple[str, ...] = Field((), description="files of API keys (`serve-app keys`), relative to where Serve "
                                       "was started; none: no key is needed")  # fmt: skip
    open_paths: tuple[str, ...] = Field(
        ("/health", "/ping"), description="paths below the route prefix that may be read (GET, HEAD) without a key"
    )
    allowed_hosts: tuple[str, ...] = Field((), description="without keys: more names that the server may be asked by, "
        "beside addresses, localhost, names without a dot and in .local, .internal and .svc; `.example.com` is all "
        "below it, `*` any")  # fmt: skip
    allowed_origins: tuple[str, ...] = Field((), description="origins (https://host) whose pages may use the driver's "
        "routes, `*` any; with keys none means any, as a page needs a key. For the engine's routes set vLLM's own "
        "allowed_origins")  # fmt: skip
    max_body_bytes: int | None = Field(64 * 2**20, ge=1, description="largest request body; null: no limit")
    max_prompt_tokens: int | None = Field(None, ge=1, description="longest prompt; null: the model's limit")
    request_timeout_s: float | None = Field(
        None, gt=0, description="from the request to the end of the answer; null: no limit"
    )
    write_timeout_s: float | None = Field(60.0, gt=0, description="how long a client may stop reading, where the "
                                          "server can see it; null: no limit")  # fmt: skip
    max_inflight_requests: int | None = Field(448, ge=1, description="open POST requests at one replica; further "
        "ones get 429. Keep it below max_ongoing_requests (512); null: no limit")  # fmt: skip
    log_requests: bool = Field(True, description="log a JSON line for each request, by the logger serve_app.request")
    log_bodies: bool = Field(False, description="with the first 64 KiB of prompt and answer, which is private data")


class ControlAccessSettings(AccessSettings):
    """The same for the driver's routes, with file uploads and many status requests."""

    open_paths: tuple[str, ...] = Field((), description="paths below the route prefix that may be read without a key")
    max_body_bytes: int | None = Field(16 * 2**30, ge=1, description="largest request body; null: no limit")
    max_inflight_requests: int | None = Field(None, ge=1, description="open POST requests; null: no limit")


class ReplicaSettings(Frozen):
    """Arguments of the `replicas` application.

    `engine` takes any option of vLLM's AsyncEngineArgs and OpenAI front end, by vLLM's names. `model` may also name a
    prepared model (`smollm2-135m-instruct`).
    """

    engine: dict[str, Any] = Field(default_factory=dict, description="vLLM's options, with underscores")
    health: HealthSettings = Field(HealthSettings(), description="when an engine counts as hung")
    sharing: SharingSettings = Field(
        SharingSettings(), description="engine time for populations beside online requests"
    )
    sharding: ShardingSettings = Field(ShardingSettings(), description="long prompt lists of `/v1/completions`")
    access: AccessSettings = Field(AccessSettings(), description="keys and limits")
    routing: RoutingSettings = Field(RoutingSettings(), description="sessions")
    admin_routes: tuple[str, ...] = Field((), description="vLLM's administrative routes to leave open")
    simulated: SimulatedSettings | None = Field(None, description="use a simulated engine without a model, for tests")


class ServedApplication(Frozen):
    """A `serve_app.serving.apps:replicas` application in the same config file."""

    name: str = Field(min_length=1, description="the application's name")
    models: tuple[str, ...] = Field((), description="its models' names, known also while none of its replicas runs; "
                                    "names that running replicas list are found by themselves")  # fmt: skip


class ModelsSettings(Frozen):
    """Arguments of the `models` application."""

    applications: tuple[ServedApplication, ...] = Field(min_length=1, description="the first takes requests that "
                                                        "name no model")  # fmt: skip
    access: AccessSettings = Field(AccessSettings(), description="keys of all requests, looked at before a body is "
                                   "read or a replica started, and limits of what is answered here; requests that are "
                                   "handed on obey their application's own too")  # fmt: skip

    @model_validator(mode="after")
    def _without_doubles(self) -> ModelsSettings:
        for field, names in (
            ("applications.name", [application.name for application in self.applications]),
            ("applications.models", [model for application in self.applications for model in application.models]),
        ):
            if twice := sorted({name for name in names if names.count(name) > 1}):
                raise ValueError(f"{field}: {', '.join(twice)} is there twice")
        return self


class DispatchSizes(Frozen):
    """How rows are sent to replicas: the part of `DriverSettings` for `dispatch.pool`."""

    chunk_rows: int = Field(64, ge=1, description="rows sent to a replica in one call")
    min_chunk_rows: int = Field(4, ge=1, description="size to which chunks shrink near the end of a job")
    window_rows: int = Field(192, ge=1, description="open rows of a replica at the start")
    max_window_rows: int = Field(1024, ge=1, description="open rows of a replica at most")
    backlog_rows: int = Field(16_384, ge=1, description="rows of a job that are held in memory at once")
    memory_bytes: int = Field(256 * 2**20, ge=1, description="prompts and answers that all jobs of a process hold in "
                              "memory at once; a job alone gets half, and a larger row passes alone")  # fmt: skip
    max_attempts: int = Field(
        5, ge=1, description="failures of a row before it is `failed`; losses of its replica do not count"
    )
    replica_wait_s: float = Field(900.0, gt=0, description="how long a job waits for a replica before it fails")


class DriverSettings(DispatchSizes):
    """Arguments of the `populations` application.

    One call sends `chunk_rows` rows. Each replica has up to a window of open rows, so some queue while others compute.
    Both are small: a lost replica loses at most a window, and 8×64 had 50% more throughput than 1×512 (ray#52634). The
    window starts at `window_rows` and follows the engine's queue.
    """

    replicas: str = Field(REPLICAS_APP, description="the `replicas` application whose replicas answer rows")
    store: str = Field("runs", min_length=1, description="folder or URL (s3://…) of the jobs; a folder is relative to "
                       "where Serve was started")  # fmt: skip
    min_rows_per_replica: int = Field(
        128, ge=1, description="fewer rows than this are no reason to use one more replica"
    )
    max_rows_per_replica: int = Field(4096, ge=1, description="above this, more replicas are asked for")
    commit_rows: int = Field(1000, ge=1, description="rows after which results are committed, at the latest")
    commit_seconds: float = Field(1.0, gt=0, description="seconds after which results are committed, at the latest")
    priority: int = Field(10, ge=POPULATION_PRIORITIES[0], le=POPULATION_PRIORITIES[1], description="vLLM's priority "
                          "of population work; online requests have 0, lower goes first")  # fmt: skip
    store_wait_s: float = Field(300.0, ge=0, description="how long a commit is retried before the job fails")
    max_running_jobs: int = Field(8, ge=1, description="jobs that run at once; further ones are queued")
    rows_per_runner: int = Field(1_000_000, ge=1, description="larger populations are split over several processes")
    max_runners: int = Field(1, ge=1, description="processes of one job at most; 1: jobs run in the driver itself")
    access: ControlAccessSettings = Field(ControlAccessSettings(), description="keys and limits")
    provider_keys: dict[str, str] = Field({key: url for url, key in PROVIDERS.values()}, description="environment "
        "variables that jobs may name as a provider's `api_key_env`, each with the address that its key may be sent "
        "to")  # fmt: skip
    provider_urls: tuple[str, ...] = Field((), description="more addresses of providers: with keys jobs may name only "
        "these and those of `provider_keys`; without keys these may be private ones too")  # fmt: skip
    source_folders: tuple[str, ...] = Field((), description="folders of the driver's machine that a job's `source` may "
        "be in; URLs and uploads need none")  # fmt: skip
    source_urls: tuple[str, ...] = Field((), description="folders of URLs, as s3://bucket/folder: with keys a job's "
        "`source` may be a URL only below these; without keys these may be private addresses too")  # fmt: skip

    @property
    def source_reach(self) -> Reach:
        """Allowed web servers of sources."""
        return Reach.of(self.source_urls, "source_urls")

    @property
    def provider_reach(self) -> Reach:
        """Allowed providers."""
        return Reach.of((*self.provider_urls, *self.provider_keys.values()), "provider_urls")

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
