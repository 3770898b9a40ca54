"""Builds vLLM's AsyncLLM and OpenAI application from options."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

from serve_app.engine.options import known_options
from serve_app.engine.processes.fork import ForkedEngines
from serve_app.engine.processes.timeline import mark
from serve_app.settings import SHARING_KEY, SharingSettings


def import_front_end() -> None:
    import vllm.entrypoints.launchers.api_server.app_state
    import vllm.entrypoints.launchers.app
    import vllm.entrypoints.launchers.cli_args  # noqa: F401


def on_cpu() -> bool:
    from vllm.platforms import current_platform

    return bool(current_platform.is_cpu())


def split_options(options: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    kinds = known_options()
    engine = {name: value for name, value in options.items() if kinds[name] == "engine"}
    return engine, {name: value for name, value in options.items() if kinds[name] != "engine"}


def build_engine(
    options: Mapping[str, Any], sharing: SharingSettings, on_step: Callable[[int | None], None], *, ray_metrics: bool
) -> Any:
    """An AsyncLLM that calls `on_step` with the number of waiting requests, if known, after each step."""
    from vllm import AsyncEngineArgs
    from vllm.usage.usage_lib import UsageContext
    from vllm.v1.engine.async_llm import AsyncLLM
    from vllm.v1.metrics.ray_wrappers import RayPrometheusStatLogger

    mark("import")
    # The configuration names libraries to preload.
    forked = ForkedEngines() if on_cpu() else nullcontext()
    args = AsyncEngineArgs(**options)
    # Gives the default batch sizes of `vllm serve`.
    config = args.create_engine_config(UsageContext.OPENAI_API_SERVER)
    mark("config")
    use_our_scheduler(config, sharing)
    with forked:
        return AsyncLLM.from_vllm_config(
            config,
            usage_context=UsageContext.OPENAI_API_SERVER,
            stat_loggers=[
                _progress_logger(on_step),
                *([RayPrometheusStatLogger] if ray_metrics else []),
            ],
            enable_log_requests=args.enable_log_requests,
            disable_log_stats=args.disable_log_stats,
        )


async def build_app(engine: Any, options: Mapping[str, Any]) -> Any:
    from vllm.entrypoints.launchers.api_server.app_state import init_app_state
    from vllm.entrypoints.launchers.app import build_app as build_vllm_app
    from vllm.entrypoints.launchers.cli_args import make_arg_parser
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    options = dict(options)
    # Only argument parsing makes adapters objects.
    lora = [one if isinstance(one, str) else json.dumps(one) for one in options.pop("lora_modules", None) or ()]
    args = make_arg_parser(FlexibleArgumentParser()).parse_args(["--lora-modules", *lora] if lora else [])
    for name, value in options.items():
        setattr(args, name, value)
    tasks = await engine.get_supported_tasks()
    app = build_vllm_app(args, tasks, engine.model_config)
    await init_app_state(engine, app.state, args, tasks)
    outlive_engine(app)
    return app


def outlive_engine(app: Any) -> None:
    """Have requests to a dead engine answered with 500. vLLM's handler then tells its server to exit, which here is
    Serve's affair: without a server it fails itself, and that was taken for the client's fault.
    """
    app.state.server = SimpleNamespace(should_exit=False)


def use_our_scheduler(config: Any, sharing: SharingSettings) -> None:
    """Use our scheduler unless the VllmConfig names another."""
    scheduling = config.scheduler_config
    if scheduling.scheduler_cls is not None:
        return
    name = "OnlineFirstAsyncScheduler" if scheduling.async_scheduling else "OnlineFirstScheduler"
    scheduling.scheduler_cls = f"serve_app.engine.scheduler.{name}"
    config.additional_config = {**config.additional_config, SHARING_KEY: sharing.model_dump()}


def _progress_logger(on_step: Any) -> type:
    from vllm.v1.metrics.loggers import StatLoggerBase

    class ProgressLogger(StatLoggerBase):
        """Called by vLLM after each engine step; some calls lack scheduler figures."""

        def __init__(self, vllm_config: Any, engine_index: int = 0) -> None:
            pass

        def record(self, scheduler_stats: Any, *args: Any, **kwargs: Any) -> None:
            on_step(None if scheduler_stats is None else scheduler_stats.num_waiting_reqs)

        def log_engine_initialized(self) -> None:
            pass

    return ProgressLogger
