"""`vllm run-batch`: OpenAI's batch file in, results file out.

The command is a one-shot process: `main` opens an engine client and calls the coroutine `run_batch` on it, once
(vllm/entrypoints/launchers/run_batch.py). Here the same two are called, with the options that the command line
parses, but `run_batch` once a pass, on a client that stays open, and with the request handlers that it would build
anew each time (0.6 s) built once. So a pass is all that the command does once it is up: read and check the file,
render, tokenise, generate, write the results. Process, imports, engine, handlers and the making of the input file
are left out.

One token a row with `logprob_token_ids`, as the driver asks; the handlers must also render a chat response each.
"""

from __future__ import annotations

import asyncio
import atexit
import json
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.peers import Case, Child, serve_lines
from benchmarks.peers.chat import label_logprobs, scored_body, usage

MODEL = "model"


class RunBatch(Child):
    """`vllm run-batch` with its engine kept between files."""

    def __init__(self, case: Case, *, log: Path) -> None:
        super().__init__("benchmarks.peers.run_batch", case=case, log=log)


def build(case: Case) -> Callable[[list[dict[str, Any]]], dict[str, Any]]:
    """The engine client, and how the command scores rows with it."""
    from vllm.entrypoints.launchers import run_batch as command
    from vllm.entrypoints.launchers.api_server.entry import build_async_engine_client
    from vllm.usage.usage_lib import UsageContext
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    folder = Path(tempfile.mkdtemp(prefix="run-batch-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    asked, answered = folder / "in.jsonl", folder / "out.jsonl"
    args = command.make_arg_parser(FlexibleArgumentParser()).parse_args(
        command_line(
            {
                "input_file": asked,
                "output_file": answered,
                "model": case.model,
                "served_model_name": MODEL,
                "distributed_executor_backend": "mp",
                "disable_log_stats": True,
                "enable_prompt_tokens_details": True,
                **case.engine,
            }
        )
    )
    loop = asyncio.new_event_loop()
    context = build_async_engine_client(args, usage_context=UsageContext.OPENAI_BATCH_RUNNER)
    client = loop.run_until_complete(context.__aenter__())  # leaves with the process
    handlers = loop.run_until_complete(command.build_endpoint_registry(client, args))

    async def built(**_: Any) -> Any:
        return handlers

    command.build_endpoint_registry = built

    def score(rows: list[dict[str, Any]]) -> dict[str, Any]:
        asked.write_text("".join(json.dumps(_line(row, case)) + "\n" for row in rows))
        started = time.perf_counter()
        loop.run_until_complete(command.run_batch(client, args))
        wall_s = time.perf_counter() - started
        # In the rows' order, as the coroutine gathers them.
        bodies = [(json.loads(line)["response"] or {}).get("body") for line in answered.open()]
        prompt_tokens, cached_tokens = usage(bodies)
        return {
            "wall_s": wall_s,
            "logprobs": [label_logprobs(body, case.label_ids) for body in bodies],
            "prompt_tokens": prompt_tokens,
            "cached_tokens": cached_tokens,
        }

    return score


def command_line(options: dict[str, Any]) -> list[str]:
    """Options as `vllm` takes them: {"enforce_eager": True, "block_size": 32} is --enforce-eager --block-size 32."""
    words: list[str] = []
    for name, value in options.items():
        flag = f"--{name.replace('_', '-')}"
        words += [flag] if value is True else [f"--no-{flag[2:]}"] if value is False else [flag, str(value)]
    return words


def _line(row: dict[str, Any], case: Case) -> dict[str, Any]:
    body = scored_body(MODEL, row["messages"], case.label_ids)
    return {"custom_id": row["custom_id"], "method": "POST", "url": "/v1/chat/completions", "body": body}


if __name__ == "__main__":
    serve_lines(build)
