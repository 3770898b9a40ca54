"""Offline vLLM as its users call it: `LLM.chat`, all rows in one call, template and tokenising on the clock.

Scoring asks for one token and the labels' log-probabilities, and no text; generating for text.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.peers import Case, Child, serve_lines


class OfflineChat(Child):
    """`LLM.chat` in a process of its own."""

    def __init__(self, case: Case, *, log: Path) -> None:
        super().__init__("benchmarks.peers.offline_chat", case=case, log=log)


def build(case: Case) -> Callable[..., dict[str, Any]]:
    """The engine, and how it answers rows."""
    from vllm import LLM, SamplingParams

    llm: Any = LLM(model=case.model, disable_log_stats=True, **case.engine)

    def answer(rows: list[dict[str, Any]], max_tokens: int = 1) -> dict[str, Any]:
        if max_tokens == 1:
            params = SamplingParams(
                max_tokens=1, temperature=0.0, logprob_token_ids=list(case.label_ids), detokenize=False
            )
        else:
            params = SamplingParams(max_tokens=max_tokens, temperature=0.0)
        chats = [row["messages"] for row in rows]
        started = time.perf_counter()
        outputs = llm.chat(chats, params, use_tqdm=False)
        wall_s = time.perf_counter() - started
        first = [output.outputs[0] for output in outputs]
        scores = [one.logprobs and [one.logprobs[0][i].logprob for i in case.label_ids] for one in first]
        return {
            "wall_s": wall_s,
            "logprobs": scores,
            "prompt_tokens": sum(len(output.prompt_token_ids) for output in outputs),
            "cached_tokens": sum(output.num_cached_tokens or 0 for output in outputs),
            "completed": sum(bool(one.finish_reason) for one in first),
            "completion_tokens": sum(len(one.token_ids) for one in first),
        }

    return answer


if __name__ == "__main__":
    serve_lines(build)
