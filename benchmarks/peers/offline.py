"""Offline vLLM: `LLM.generate` on token ids, all rows in one call.

Knows vLLM's offline class at its best: prompts tokenised beforehand, as the driver's are, no detokenising, only the
final output. The clock runs for the call alone; `tokenize_s` is what making the token ids took before it.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.peers import Case, Child, serve_lines
from serve_app.dispatch.render import TokenRenderer
from serve_app.schema import Row, unpack_tokens


class Offline(Child):
    """`LLM.generate` in a process of its own."""

    def __init__(self, case: Case, *, log: Path) -> None:
        super().__init__("benchmarks.peers.offline", case=case, log=log)


def build(case: Case) -> Callable[[list[dict[str, Any]]], dict[str, Any]]:
    """The engine, and how it scores rows."""
    from vllm import LLM, SamplingParams
    from vllm.sampling_params import RequestOutputKind

    renderer = TokenRenderer(case.model)
    params = SamplingParams(
        max_tokens=1,
        temperature=0.0,
        logprob_token_ids=list(case.label_ids),
        detokenize=False,
        output_kind=RequestOutputKind.FINAL_ONLY,
    )
    llm: Any = LLM(model=case.model, distributed_executor_backend="mp", disable_log_stats=True, **case.engine)

    def score(rows: list[dict[str, Any]]) -> dict[str, Any]:
        began = time.perf_counter()
        packed = renderer.prompts([Row(row["custom_id"], tuple(row["messages"])) for row in rows])
        prompts = [{"prompt_token_ids": unpack_tokens(one)} for one in packed if isinstance(one, bytes)]
        started = time.perf_counter()
        outputs = llm.generate(prompts, params, use_tqdm=False)
        return {
            "wall_s": time.perf_counter() - started,
            "tokenize_s": started - began,
            "logprobs": [[first[i].logprob for i in case.label_ids] for first in map(_first, outputs)],
            "prompt_tokens": sum(len(output.prompt_token_ids) for output in outputs),
            "cached_tokens": sum(output.num_cached_tokens or 0 for output in outputs),
        }

    return score


def _first(output: Any) -> Any:
    """Log-probabilities of the first generated token, by token id."""
    return output.outputs[0].logprobs[0]


if __name__ == "__main__":
    serve_lines(build)
