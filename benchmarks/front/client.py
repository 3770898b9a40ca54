"""The load: `vllm bench serve`'s own coroutine, in a process that stays, as its import takes 8 s of a core.

Chats are streamed, as it streams all chats. Prompts are `benchmarks.load`'s, of one length.
"""

from __future__ import annotations

import asyncio
import gc
import itertools
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.load import SYSTEM, Figures, percentile, prompts
from benchmarks.peers import Case, Child, serve_lines
from serve_app.errors import ServeAppError


class VllmBench(Child):
    """`vllm bench serve`, frozen but while it asks."""

    def __init__(self, *, log: Path) -> None:
        super().__init__("benchmarks.front.client", case=Case("", {}, (), ()), log=log)

    def ask(self, base_url: str, model: str, seed: str, count: int, max_tokens: int, concurrency: int) -> Figures:
        """Figures of `count` chats; another seed gives other prompts. Raises ServeAppError where one failed."""
        self.thaw()
        try:
            load = {"texts": prompts(count, seed), "max_tokens": max_tokens, "concurrency": concurrency}
            figures: Figures = self.call({"base_url": base_url, "model": model, **load})
        finally:
            self.freeze()
        if figures["failed"]:
            raise ServeAppError(f"{figures['failed']:.0f} of {count} chats failed; see the log of the client")
        return figures


def build(_: Case) -> Callable[..., Figures]:
    """What puts a load on a server."""
    from vllm.benchmarks.datasets import SampleRequest
    from vllm.benchmarks.serve import TaskType, benchmark

    def ask(base_url: str, model: str, texts: list[str], max_tokens: int, concurrency: int) -> Figures:
        requests = [
            SampleRequest(
                prompt=text,
                prompt_len=0,  # the server's usage says it
                expected_output_len=max_tokens,
                chat_messages=[{"role": "system", "content": SYSTEM}, {"role": "user", "content": text}],
            )
            for text in texts
        ]
        gc.collect()
        gc.freeze()  # as the command does
        cpu_before = time.process_time()
        found: dict[str, Any] = asyncio.run(
            benchmark(
                task_type=TaskType.GENERATION,
                endpoint_type="openai-chat",
                api_url=f"{base_url}/v1/chat/completions",
                base_url=base_url,
                model_id=model,
                model_name=model,
                tokenizer=None,
                input_requests=requests,
                logprobs=None,
                request_rate=float("inf"),
                burstiness=1.0,
                disable_tqdm=True,
                num_warmups=0,
                profile=False,
                selected_percentile_metrics=["ttft", "itl"],
                selected_percentiles=[50, 99],
                ignore_eos=True,
                goodput_config_dict={},
                max_concurrency=concurrency,
                lora_modules=None,
                extra_headers=None,
                # An end that is ignored is a chunk with content, like any other token.
                extra_body={"temperature": 0.0, "skip_special_tokens": False},
                ready_check_timeout_sec=0,
            )
        )
        cpu_s = time.process_time() - cpu_before
        itls = list(itertools.chain(*found["itls"]))
        return {
            "requests": float(found["completed"]),
            "failed": float(found["failed"]),
            "req_per_s": found["request_throughput"],
            "tok_per_s": found["output_throughput"],
            "ttft_p50_ms": percentile(found["ttfts"], 50) * 1000,
            "ttft_p99_ms": percentile(found["ttfts"], 99) * 1000,
            "itl_p50_ms": percentile(itls or [0.0], 50) * 1000,
            "itl_p99_ms": percentile(itls or [0.0], 99) * 1000,
            "client_cores": cpu_s / found["duration"],
        }

    return ask


if __name__ == "__main__":
    serve_lines(build)
