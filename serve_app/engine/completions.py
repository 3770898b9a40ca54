"""Converts chunks to vLLM requests, and outputs to completions."""

from __future__ import annotations

from typing import Any

from serve_app.schema import Chunk, Completion


def sampling_params(chunk: Chunk) -> Any:
    """vLLM's SamplingParams for all prompts of a chunk."""
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind, StructuredOutputsParams

    if chunk.label_ids:
        # Exact log-probabilities of the whole vocabulary. `prompt_logprobs` would disable the prefix cache
        # (vllm#42245).
        return SamplingParams(
            max_tokens=1,
            temperature=0.0,
            logprob_token_ids=list(chunk.label_ids),
            detokenize=False,
            output_kind=RequestOutputKind.FINAL_ONLY,
        )
    sampling = chunk.sampling
    return SamplingParams(
        max_tokens=sampling.max_tokens,
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        seed=sampling.seed,
        stop=list(sampling.stop),
        structured_outputs=StructuredOutputsParams(**sampling.structured) if sampling.structured else None,
        output_kind=RequestOutputKind.FINAL_ONLY,
    )


def to_completion(output: Any, label_ids: tuple[int, ...], latency_ms: float) -> Completion:
    answer = output.outputs[0]
    if answer.finish_reason in ("abort", "error"):
        error = f"the engine ended the request: {answer.finish_reason}"
        return Completion(status="failed", error=error, prompt_tokens=len(output.prompt_token_ids))
    logprobs: tuple[float, ...] = ()
    if label_ids:
        first = answer.logprobs[0]
        logprobs = tuple(float(first[label].logprob) for label in label_ids)
    return Completion(
        text=None if label_ids else answer.text,
        label_logprobs=logprobs,
        finish_reason=answer.finish_reason,
        prompt_tokens=len(output.prompt_token_ids),
        cached_tokens=output.num_cached_tokens or 0,
        completion_tokens=len(answer.token_ids),
        latency_ms=latency_ms,
    )


def summary(error: BaseException) -> str:
    return " ".join(str(error).split())[:500] or type(error).__name__
