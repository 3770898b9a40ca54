"""ray.data.llm: a Ray Data pipeline of chat template, tokeniser and vLLM engine, on a local Ray of its own.

Knows `build_processor` and its settings. It runs in the environment that ray_data_env.sh makes, as ray[llm] pins an
older vLLM than this project has: the engine is vLLM 0.29.0's, the rest of the versions are the same.

Ray Data starts the engine when a dataset runs and stops it at its end. To leave starting out, one dataset runs for
as long as the peer does: its first stage is an actor that waits for the next block of rows, so a pass goes through
a pipeline that is up and empty, as every other peer's does. The pipeline is ray.data's own from the block on.

Settings, by its docs: batch_size 32, its default, or the next smaller divisor of the pass, as a stage waits for whole
batches (64, and tokenising in the engine, measured 22.3 and 22.5 rows/s against 23.3); 8 batches at once, its default,
which is more than max_num_seqs 128; one actor a stage; `mp` workers, as its own default, `ray`, is for several hosts;
no detokenising, as no text is asked for; no metrics export. It does not tell how many tokens were cached.
"""

from __future__ import annotations

import os
import queue
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.peers import Case, Child, serve_lines
from serve_app.errors import BadSettings
from serve_app.models.default import cache_dir

MAX_BATCH_ROWS, MIN_BATCH_ROWS = 32, 16
# Blocks that the pipeline can take in its life.
MAX_BLOCKS = 1000
# Room for all stages at once; what Ray counts, not cores.
LOGICAL_CPUS = 8
OBJECT_STORE_BYTES = 256 << 20
PASS_TIMEOUT_S = 600.0


class RayData(Child):
    """ray.data.llm in a process and a Ray of its own. Every pass has `rows_per_pass` rows, or a multiple.

    Raises BadSettings without its environment, or for a number of rows that cannot be cut into whole batches.
    """

    def __init__(self, case: Case, *, log: Path, rows_per_pass: int) -> None:
        python = cache_dir() / "peers" / "ray-data" / "bin" / "python"
        if not python.exists():
            raise BadSettings(f"{python} is missing: run benchmarks/peers/ray_data_env.sh first")
        rows = str(batch_rows(rows_per_pass))
        super().__init__("benchmarks.peers.ray_data", rows, case=case, log=log, python=str(python))


def batch_rows(rows_per_pass: int) -> int:
    """The largest batch of at most MAX_BATCH_ROWS that divides a pass. Raises BadSettings where there is none."""
    for rows in range(MAX_BATCH_ROWS, MIN_BATCH_ROWS - 1, -1):
        if rows_per_pass % rows == 0:
            return rows
    raise BadSettings(
        f"rows_per_pass: {rows_per_pass} has no divisor from {MIN_BATCH_ROWS} to {MAX_BATCH_ROWS}; take 256 or 1000"
    )


def build(case: Case, rows_per_batch: int) -> Callable[[list[dict[str, Any]]], dict[str, Any]]:
    """The running pipeline, and how it scores rows."""
    import pyarrow as pa
    import ray
    from ray.data.llm import build_processor, vLLMEngineProcessorConfig

    os.environ.pop("RAY_ADDRESS", None)
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_worker_niceness", "0")  # by default 15, which no other peer's engine has
    ray.init(
        address="local",
        num_cpus=LOGICAL_CPUS,
        object_store_memory=OBJECT_STORE_BYTES,
        include_dashboard=False,
    )
    ray.data.DataContext.get_current().enable_progress_bars = False
    mailbox = ray.remote(num_cpus=0)(Mailbox).remote()
    config = vLLMEngineProcessorConfig(
        model_source=case.model,
        engine_kwargs={**case.engine, "distributed_executor_backend": "mp", "disable_log_stats": True},
        placement_group_config={"bundle_per_worker": {"CPU": 1}},
        accelerator_type=None,
        batch_size=rows_per_batch,
        concurrency=1,
        chat_template_stage=True,
        tokenize_stage=True,
        detokenize_stage=False,
        log_engine_metrics=False,
    )
    sampling = {"max_tokens": 1, "temperature": 0.0, "detokenize": False, "logprob_token_ids": list(case.label_ids)}
    processor = build_processor(
        config,
        preprocess=lambda row: {**row, "sampling_params": sampling},
        postprocess=lambda row: {"index": row["index"], **label_columns(row["logprobs"], case.label_ids)},
    )
    blocks = ray.data.from_arrow([pa.table({"block": [number]}) for number in range(MAX_BLOCKS)])
    source = blocks.map_batches(Source, fn_constructor_args=(mailbox,), batch_size=1, concurrency=1, num_cpus=0)
    answers: queue.Queue[dict[str, Any] | BaseException] = queue.Queue()
    threading.Thread(target=drain, args=(processor(source), answers), daemon=True).start()

    def score(rows: list[dict[str, Any]]) -> dict[str, Any]:
        logprobs: list[list[float] | None] = [None] * len(rows)
        indexed = [{"index": i, "messages": row["messages"]} for i, row in enumerate(rows)]
        started = time.perf_counter()
        mailbox.put.remote([indexed[i : i + rows_per_batch] for i in range(0, len(indexed), rows_per_batch)])
        for _ in rows:
            answer = answers.get(timeout=PASS_TIMEOUT_S)
            if isinstance(answer, BaseException):
                raise answer
            logprobs[answer["index"]] = [answer[f"label_{i}"] for i in case.label_ids]
        return {"wall_s": time.perf_counter() - started, "logprobs": logprobs}

    # Ray Data starts a stage's actors with the dataset, the engine with its first batch: one batch that is not told.
    score([{"messages": [{"role": "user", "content": f"{i}"}]} for i in range(rows_per_batch)])
    return score


class Mailbox:
    """An actor with the blocks of rows that are to be scored, in order."""

    def __init__(self) -> None:
        import asyncio

        self._blocks: asyncio.Queue[list[dict[str, Any]]] = asyncio.Queue()

    async def put(self, blocks: list[list[dict[str, Any]]]) -> None:
        for block in blocks:
            self._blocks.put_nowait(block)

    async def take(self) -> list[dict[str, Any]]:
        return await self._blocks.get()


class Source:
    """The first stage: each call waits for a block and gives its rows as columns."""

    def __init__(self, mailbox: Any) -> None:
        self._mailbox = mailbox

    def __call__(self, _: dict[str, Any]) -> dict[str, Any]:
        import ray

        rows = ray.get(self._mailbox.take.remote())
        return {name: [row[name] for row in rows] for name in rows[0]}


def label_columns(logprobs: Any, label_ids: tuple[int, ...]) -> dict[str, float]:
    """A column a label, from the first generated token's log-probabilities."""
    first = {int(token): found for token, found in dict(logprobs[0]).items() if found is not None}
    return {f"label_{label}": float(first[label]["logprob"]) for label in label_ids}


def drain(dataset: Any, answers: queue.Queue[Any]) -> None:
    """Hand out rows as they come; last, what ended the pipeline."""
    try:
        for batch in dataset.iter_batches(batch_size=None, prefetch_batches=0, batch_format="pyarrow"):
            for row in batch.to_pylist():
                answers.put(row)
        answers.put(RuntimeError(f"the pipeline ended: {MAX_BLOCKS} blocks are used up"))
    except BaseException as error:  # whatever ended it is the next pass's to tell
        answers.put(error)


if __name__ == "__main__":
    serve_lines(lambda case: build(case, int(sys.argv[1])))
