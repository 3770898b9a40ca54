"""Adapts vLLM's AsyncLLM with the multiprocessing executor to our engine protocol.

vLLM is imported only when an engine starts, and only in this room: `launch.py` builds it, `running.py` inspects it,
`completions.py` converts. Much of what we use moves between minor versions, so vLLM is pinned and
`tests/engine/test_vllm_api.py` imports every name.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import aclosing
from typing import Any

import psutil

from serve_app.engine.completions import sampling_params, summary, to_completion
from serve_app.engine.finishing import as_finished
from serve_app.engine.health.check import HealthCheck
from serve_app.engine.health.watchdog import Watchdog
from serve_app.engine.host.cpu import CoreClaim, available_cores, claim_cores, cpu_build, memory_bytes
from serve_app.engine.host.fit import fit_to_host
from serve_app.engine.identity import engine_identity, prompt_settings
from serve_app.engine.launch import build_app, build_engine, import_front_end, on_cpu, split_options
from serve_app.engine.options import check_options
from serve_app.engine.processes.fork import BINDING_ENV, start_fork_server
from serve_app.engine.processes.shared_memory import unlink_mapped
from serve_app.engine.processes.timeline import mark
from serve_app.engine.protocol import ASGIApp
from serve_app.engine.running import (
    core_pid,
    has_requests,
    refuse_unsendable,
    tracks_resources,
    vllm_version,
    worker_pids,
)
from serve_app.errors import BadSettings, EngineFailed, ServeAppError
from serve_app.models.catalog import check_heads, read_config, resolve_model
from serve_app.schema import Chunk, Completion, EngineInfo, pack_tokens, unpack_tokens
from serve_app.settings import PROBE_PRIORITY, HealthSettings, SharingSettings

logger = logging.getLogger(__name__)
# vLLM shares prefixes in whole blocks. Its CPU default of 128 tokens served 18-21 rows/s, 32 serve 41-50 (84.5 and 93.6
# % of tokens cached, 494 of 526 shared). CPU kernels need a multiple of 32.
CPU_BLOCK_SIZE = 32
# A longer step hangs; the first on CPU is unmeasured (engine/scheduler.py).
CPU_STEP_TIMEOUT_S, GPU_STEP_TIMEOUT_S = 900.0, 60.0
# W3C Trace Context, unsampled: otherwise each row begins a trace.
UNSAMPLED = {"traceparent": f"00-{'1' * 32}-{'1' * 16}-00"}
DEFAULT_SHARING = SharingSettings()


class VLLMEngine:
    """See `engine.protocol.Engine`. `options` are vLLM's; `replicas` share this host.

    `meter` gets the AsyncLLM before use, to count requests. With `ray_metrics`, which needs Ray, vLLM's metrics go to
    the node's Ray agent.
    """

    def __init__(
        self,
        options: Mapping[str, Any],
        health: HealthSettings,
        sharing: SharingSettings = DEFAULT_SHARING,
        *,
        assigned_cpus: float = 1,
        replicas: int = 1,
        meter: Callable[[Any], None] = lambda engine: None,
        ray_metrics: bool = False,
    ) -> None:
        check_options(options)
        self._options = dict(options)
        self._health = health
        self._sharing = sharing
        self._assigned_cpus = assigned_cpus
        self._replicas = replicas
        self._cores: CoreClaim | None = None
        self._engine: Any = None
        self._app: Any = None
        self._info: EngineInfo | None = None
        self._failed: str | None = None
        self._pools = False
        self._sequence = 0
        self._waiting = 0
        self._processes: list[psutil.Process] = []
        self._watchdog: Watchdog | None = None
        self._check: HealthCheck | None = None
        self._dtype_reason = ""
        self._trace_headers = UNSAMPLED if options.get("otlp_traces_endpoint") else None
        self._meter = meter
        self._ray_metrics = ray_metrics

    async def start(self) -> None:
        mark("process")
        if cpu_build():
            start_fork_server()  # imports vLLM in parallel
        options = self._prepare_options()
        engine_options, frontend = split_options(options)
        logger.info("starting vLLM with %s", ", ".join(sorted(engine_options)))  # not values: hf_token is one
        # Idle while EngineCore and the workers load.
        front_end = asyncio.get_running_loop().run_in_executor(None, import_front_end)
        try:
            self._engine = build_engine(engine_options, self._sharing, self._on_step, ray_metrics=self._ray_metrics)
            self._pools = self._engine.vllm_config.model_config.runner_type == "pooling"
            refuse_unsendable(self._engine)
            self._meter(self._engine)
            mark("engine")
            self._processes = psutil.Process().children(recursive=True)
            await front_end
            self._app = await build_app(self._engine, {**engine_options, **frontend})
            await asyncio.wait_for(self._answer_one(), self._health.start_timeout_s)
            mark("first_token")
            unlink_mapped(self._processes)
        except BaseException as error:
            await self.shutdown()
            if isinstance(error, ServeAppError):
                raise
            if isinstance(error, (ValueError, AssertionError)):
                raise BadSettings(f"vLLM refused its options: {summary(error)}") from error
            if isinstance(error, Exception):
                raise EngineFailed(f"vLLM did not start: {summary(error)}") from error
            raise
        config = self._engine.vllm_config
        workers = worker_pids(self._engine)
        self._watch(workers)
        dtype = str(config.model_config.dtype).removeprefix("torch.")
        self._info = EngineInfo(
            model=options["served_model_name"][0],
            engine_version=f"vllm {vllm_version()}",
            tensor_parallel_size=config.parallel_config.tensor_parallel_size,
            max_model_len=config.model_config.max_model_len,
            prefix_caching=bool(config.cache_config.enable_prefix_caching),
            simulated=False,
            tokenizer=str(config.model_config.tokenizer),
            cpu_binding=self._cores.binding if self._cores else "",
            worker_pids=tuple(workers),
            dtype=dtype,
            dtype_reason=self._dtype_reason,
            identity=await asyncio.to_thread(engine_identity, options, dtype=dtype),
            prompts=prompt_settings(options),
        )

    def _watch(self, workers: Sequence[int]) -> None:
        on_host = on_cpu()
        default_s = CPU_STEP_TIMEOUT_S if on_host else GPU_STEP_TIMEOUT_S
        self._watchdog = Watchdog(
            workers if on_host else (),
            core_pid(self._engine) if on_host else None,
            stall_timeout_s=self._health.stall_timeout_s,
            step_timeout_s=self._health.step_timeout_s or default_s,
        )
        self._check = HealthCheck(
            self._watchdog, self._processes, ask=self._answer_one, busy=lambda: has_requests(self._engine)
        )

    def _prepare_options(self) -> dict[str, Any]:
        """Fill in all defaults that depend on model or machine."""
        options = {**self._options, "distributed_executor_backend": "mp"}
        served = options.get("served_model_name")
        names = [served] if isinstance(served, str) else list(served or [options["model"]])
        options["served_model_name"] = names
        options["model"] = str(resolve_model(options["model"]))
        ranks = int(options.get("tensor_parallel_size") or 1)
        check_heads(options["model"], ranks)
        if on_cpu():
            self._fit_to_cpu(options, ranks)
        return options

    def _fit_to_cpu(self, options: dict[str, Any], ranks: int) -> None:
        free, total = memory_bytes()
        read_config(options["model"], fetch=True)  # ours follows the model's type
        fit = fit_to_host(options, options["model"], replicas=self._replicas, total=total, free=free)
        if fit.chosen is not None:
            options["dtype"], self._dtype_reason = fit.chosen
            logger.info("computing in %s: %s; engine.dtype sets another type", *fit.chosen)
        options["kv_cache_memory_bytes"] = fit.kv
        options.setdefault("block_size", CPU_BLOCK_SIZE)
        if BINDING_ENV not in os.environ:  # keep an operator's binding
            cores_per_rank = max(1, int(self._assigned_cpus) // ranks)
            self._cores = claim_cores(ranks, cores_per_rank, cores=available_cores())
            os.environ[BINDING_ENV] = self._cores.binding
            if self._cores.shared:
                logger.warning("cores %s are shared with another replica", self._cores.binding)

    async def shutdown(self) -> None:
        engine, self._engine = self._engine, None
        unlink_mapped(self._processes)
        if engine is not None:
            await asyncio.to_thread(engine.shutdown)
        for process in self._processes:
            if process.is_running() and not tracks_resources(process):
                process.kill()
        if self._cores is not None:
            self._cores.release()
            self._cores = None

    @property
    def info(self) -> EngineInfo:
        if self._info is None:
            raise EngineFailed("the engine is not ready")
        return self._info

    def app(self) -> ASGIApp:
        app: ASGIApp = self._app
        return app

    async def run(self, chunk: Chunk) -> AsyncGenerator[dict[int, Completion]]:
        try:
            params = sampling_params(chunk)
        except ValueError as error:  # no replica would take it
            yield dict.fromkeys(range(len(chunk.prompts)), Completion(status="invalid", error=summary(error)))
            return
        async with aclosing(as_finished([self._complete(prompt, params, chunk) for prompt in chunk.prompts])) as rows:
            async for completions in rows:
                yield completions

    @property
    def waiting(self) -> int:
        return self._waiting

    async def _complete(self, prompt: bytes, params: Any, chunk: Chunk) -> Completion:
        from vllm import TokensPrompt
        from vllm.exceptions import VLLMClientError
        from vllm.v1.engine.exceptions import EngineDeadError, EngineGenerateError

        self._sequence += 1
        started = time.perf_counter()
        token_ids = unpack_tokens(prompt)
        final = None
        try:
            if self._engine is None:
                raise EngineFailed("the engine is not running")
            async for output in self._engine.generate(
                TokensPrompt(prompt_token_ids=token_ids),
                params,
                request_id=f"chunk-{chunk.chunk_id}-{self._sequence}",
                priority=chunk.priority,
                trace_headers=self._trace_headers,
            ):
                final = output
        except EngineDeadError as error:
            self._failed = summary(error)
            raise EngineFailed(f"the engine died: {self._failed}") from error
        except (VLLMClientError, ValueError) as error:
            return Completion(status="invalid", error=summary(error), prompt_tokens=len(token_ids))
        except EngineGenerateError as error:
            return Completion(status="failed", error=summary(error.__cause__ or error), prompt_tokens=len(token_ids))
        if final is None or not final.finished:
            return Completion(
                status="failed", error="the request ended without an answer", prompt_tokens=len(token_ids)
            )
        return to_completion(final, chunk.label_ids, (time.perf_counter() - started) * 1000)

    def _on_step(self, waiting: int | None) -> None:
        if self._watchdog is not None:
            self._watchdog.step()
        if waiting is not None:
            self._waiting = waiting

    async def check_health(self) -> None:
        # `AsyncLLM.check_health` tests `errored` only, not hangs.
        if self._engine is None or self._engine.errored or self._check is None:
            raise EngineFailed(f"the engine died: {self._failed or 'see its log'}")
        await self._check()

    async def _answer_one(self) -> None:
        """One token, or one pooled prompt of a model that does not generate. Raises EngineFailed."""
        if self._pools:
            await self._pool_one()
            return
        probe = Chunk(0, (), label_ids=(1,), priority=PROBE_PRIORITY)
        completion = await self._complete(pack_tokens([1]), sampling_params(probe), probe)
        if completion.error:
            raise EngineFailed(f"the engine did not generate a token: {completion.error}")

    async def _pool_one(self) -> None:
        from vllm import PoolingParams, TokensPrompt
        from vllm.tasks import POOLING_TASKS

        supported = await self._engine.get_supported_tasks()
        task = next(task for task in POOLING_TASKS if task in supported)
        self._sequence += 1
        prompt, name = TokensPrompt(prompt_token_ids=[1]), f"probe-{self._sequence}"
        async for _ in self._engine.encode(prompt, PoolingParams(task=task), name, priority=PROBE_PRIORITY):
            pass
