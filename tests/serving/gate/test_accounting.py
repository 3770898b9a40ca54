"""Tokens counted at the engine's own outputs: vLLM's classes, and an engine that hands them out as AsyncLLM does."""

from __future__ import annotations

import asyncio
import inspect
import pickle
from collections.abc import AsyncGenerator, Callable
from types import SimpleNamespace
from typing import Any

import pytest
from vllm.entrypoints.serve.utils.api_utils import with_cancellation
from vllm.outputs import CompletionOutput, PoolingOutput, PoolingRequestOutput, RequestOutput
from vllm.sampling_params import RequestOutputKind, SamplingParams
from vllm.utils import random_uuid
from vllm.utils.async_utils import merge_async_iterators
from vllm.v1.engine import EngineCoreOutput
from vllm.v1.engine.async_llm import AsyncLLM
from vllm.v1.engine.output_processor import OutputProcessor, RequestOutputCollector
from vllm.v1.engine.parallel_sampling import ParentRequest

from serve_app.errors import PromptTooLong
from serve_app.serving.gate.accounting import Account, current, install, prompt_length, use
from serve_app.settings import PROBE_PRIORITY

PROMPT = {"type": "token", "prompt_token_ids": [1, 2, 3]}
DELTA, FINAL = RequestOutputKind.DELTA, RequestOutputKind.FINAL_ONLY


def output(*token_ids: list[int], finished: bool = False) -> RequestOutput:
    parts = [CompletionOutput(i, "", ids, None, None, "stop" if finished else None) for i, ids in enumerate(token_ids)]
    return RequestOutput("r", None, [1, 2, 3], None, parts, finished)


class FakeEngine:
    """`generate` as in vLLM 0.32: an aborted request puts what it had generated into its collector, once it is
    aborted. `steps` come one after the other; `rest` is that last output; with `hold` the engine waits before it."""

    def __init__(self, steps: list[Any], rest: Any = None, hold: bool = False) -> None:
        self.steps, self.rest, self.hold = steps, rest, hold
        self.aborted = 0
        self.output_processor: Any = SimpleNamespace(process_outputs=lambda outputs: None)

    async def add_request(self, request_id: str, prompt: Any, params: Any, **options: Any) -> RequestOutputCollector:
        return RequestOutputCollector(params.output_kind if params else FINAL, request_id)

    async def generate(
        self, prompt: Any, sampling_params: Any, request_id: str, **options: Any
    ) -> AsyncGenerator[Any, None]:
        queue = await self.add_request(request_id, prompt, sampling_params, **options)
        try:
            for step in self.steps:
                queue.put(step)
                yield queue.get_nowait()
                await asyncio.sleep(0)
            if self.hold:
                await asyncio.Event().wait()
        except (asyncio.CancelledError, GeneratorExit):
            self.aborted += 1
            if self.rest is not None:
                queue.put(self.rest)
            raise

    async def encode(self, prompt: Any, pooling_params: Any, request_id: str) -> AsyncGenerator[Any, None]:
        yield PoolingRequestOutput("r", PoolingOutput(None), [1, 2, 3], 0, True)


def installed(*steps: Any, **options: Any) -> Any:
    engine = FakeEngine(list(steps), **options)
    install(engine)
    return engine


async def read(outputs: Any) -> None:
    async for _ in outputs:
        pass


async def settled(account: Account) -> tuple[int, int]:
    """The counts once the account is idle."""
    idle = asyncio.Event()
    account.when_idle(idle.set)
    await asyncio.wait_for(idle.wait(), 5)
    return account.prompt_tokens, account.completion_tokens


@pytest.mark.parametrize(
    ("kind", "steps", "completion"),
    [
        (DELTA, [output([4]), output([5, 6]), output([7], finished=True)], 4),
        (DELTA, [output([4], [5]), output([6], [7, 8], finished=True)], 5),  # n = 2
        (FINAL, [output([4, 5], [6, 7, 8], finished=True)], 5),
        (RequestOutputKind.CUMULATIVE, [output([4]), output([4, 5]), output([4, 5, 6], finished=True)], 3),
    ],
)
async def test_all_kinds_of_outputs_are_counted_once(kind: Any, steps: list[Any], completion: int) -> None:
    engine = installed(*steps)
    with use(Account()) as account:
        await read(engine.generate(PROMPT, SamplingParams(output_kind=kind), "r"))
    assert (account.prompt_tokens, account.completion_tokens) == (3, completion)


async def test_every_prompt_of_a_list_is_counted_though_other_tasks_read_them() -> None:
    engine = installed(output([4, 5], finished=True))
    with use(Account()) as account:
        parts = [engine.generate(PROMPT, SamplingParams(output_kind=FINAL), f"r-{i}") for i in range(3)]
    await asyncio.create_task(read(merge_async_iterators(*parts)))
    assert (account.prompt_tokens, account.completion_tokens) == (9, 6)


async def test_requests_side_by_side_have_accounts_of_their_own() -> None:
    engine = installed(output([4]), output([5], finished=True))

    async def request(prompts: int) -> int:
        with use(Account()) as account:
            params = SamplingParams(output_kind=DELTA)
            await asyncio.gather(*(read(engine.generate(PROMPT, params, "same id")) for _ in range(prompts)))
            return account.completion_tokens

    assert await asyncio.gather(*(request(n) for n in range(1, 6))) == [2, 4, 6, 8, 10]


async def test_no_client_goes_before_the_health_probe() -> None:
    engine, seen = FakeEngine([output([4], finished=True)]), []
    generate = engine.generate

    def noting(*args: Any, **options: Any) -> AsyncGenerator[Any, None]:
        seen.append(options["priority"])
        return generate(*args, **options)

    engine.generate = noting  # type: ignore[method-assign]
    install(engine)
    with use(Account()):
        for asked in (-(10**9), -5, 7):
            await read(engine.generate(PROMPT, SamplingParams(), "r", priority=asked))
    await read(engine.generate(PROMPT, SamplingParams(), "r", priority=PROBE_PRIORITY))  # the probe's own
    assert seen == [PROBE_PRIORITY + 1, -5, 7, PROBE_PRIORITY]


async def test_a_beam_search_costs_its_prompt_once_and_its_steps_are_no_longer_prompts() -> None:
    engine = installed(output([4], finished=True))
    account = Account(max_prompt_tokens=3)
    with use(account):
        for step, beams in enumerate((1, 2, 2)):
            name = f"cmpl-1-{random_uuid()}"
            prompt = {"type": "token", "prompt_token_ids": [1, 2, 3, *[9] * step]}
            for beam in range(beams):
                await read(engine.generate(prompt, SamplingParams(max_tokens=1), f"{name}-beam-{beam}"))
        assert await settled(account) == (3, 5)
        with pytest.raises(PromptTooLong):
            engine.generate({"type": "token", "prompt_token_ids": [1] * 4}, SamplingParams(), "cmpl-2-abc-beam-0")


async def test_embeddings_cost_their_prompt() -> None:
    engine = installed()
    with use(Account()) as account:
        await read(engine.encode(prompt=PROMPT, pooling_params=None, request_id="r"))
    assert (account.prompt_tokens, account.completion_tokens) == (3, 0)


async def test_without_an_account_the_engine_s_own_iterator_is_given_back() -> None:
    engine = installed(output([4], finished=True))
    assert current() is None
    assert engine.generate(PROMPT, SamplingParams(), "r").__qualname__.endswith("FakeEngine.generate")


async def test_an_aborted_request_without_a_stream_costs_what_was_generated() -> None:
    engine = installed(rest=output([4, 5, 6, 7], finished=True), hold=True)
    with use(Account()) as account:
        task = asyncio.create_task(read(engine.generate(PROMPT, SamplingParams(output_kind=FINAL), "r")))
    await asyncio.sleep(0.01)
    task.cancel()
    await asyncio.wait({task})
    assert engine.aborted == 1
    assert await settled(account) == (3, 4)


async def test_an_aborted_stream_costs_what_was_read_and_what_nobody_read() -> None:
    engine = installed(output([4]), output([5]), rest=output([6, 7], finished=True), hold=True)
    with use(Account()) as account:
        stream = engine.generate(PROMPT, SamplingParams(output_kind=DELTA), "r")
        await anext(stream)
        await anext(stream)
    await stream.aclose()
    assert engine.aborted == 1
    assert await settled(account) == (3, 4)


async def test_a_stream_that_is_dropped_between_two_tokens_is_aborted_and_settled_later() -> None:
    engine = installed(output([4]), output([5]), rest=output([6], finished=True))
    with use(Account()) as account:
        stream = engine.generate(PROMPT, SamplingParams(output_kind=DELTA), "r")
        await anext(stream)
    waiting = asyncio.create_task(settled(account))
    await asyncio.sleep(0)
    assert not waiting.done()
    del stream  # as the garbage collector finds vLLM's, when a response was cancelled in the middle of a send
    assert await waiting == (3, 2)
    assert engine.aborted == 1


async def test_aborting_ends_what_nobody_reads_and_leaves_what_is_read_to_its_reader() -> None:
    engine = installed(output([4]), output([5]), rest=output([6], finished=True), hold=True)
    with use(Account()) as account:
        left, read_on = (engine.generate(PROMPT, SamplingParams(output_kind=DELTA), f"r-{i}") for i in range(2))
        await anext(left)
        reading = asyncio.create_task(read(read_on))
    await asyncio.sleep(0.01)
    await account.abort()
    assert engine.aborted == 1
    reading.cancel()
    await asyncio.wait({reading})
    assert engine.aborted == 2
    assert await settled(account) == (6, 5)


async def test_what_the_client_left_behind_in_vllm_s_handler_is_counted() -> None:
    engine = installed(rest=output([4, 5], finished=True), hold=True)
    leave = asyncio.Event()

    class Request:
        app = None

        async def receive(self) -> dict[str, str]:
            await leave.wait()
            return {"type": "http.disconnect"}

    @with_cancellation
    async def handler(request: Any, raw_request: Any) -> None:
        await read(engine.generate(PROMPT, SamplingParams(output_kind=FINAL), "r"))

    with use(Account()) as account:
        call = asyncio.create_task(handler(None, raw_request=Request()))
    await asyncio.sleep(0.01)
    leave.set()
    await call
    assert await settled(account) == (3, 2)


async def test_an_engine_that_fails_is_neither_hidden_nor_counted_twice() -> None:
    class Broken(FakeEngine):
        async def generate(self, prompt: Any, sampling_params: Any, request_id: str, **options: Any) -> Any:
            yield output([4])
            raise RuntimeError("the engine died")

    engine = Broken([])
    install(engine)
    with use(Account()) as account, pytest.raises(RuntimeError, match="died"):
        await read(engine.generate(PROMPT, SamplingParams(output_kind=DELTA), "r"))
    assert await settled(account) == (3, 1)


async def test_a_prompt_that_is_too_long_is_refused_before_the_engine_sees_it() -> None:
    engine = installed(output([4], finished=True))
    with use(Account(max_prompt_tokens=2)) as account, pytest.raises(PromptTooLong, match="at most 2 tokens") as info:
        engine.generate(PROMPT, SamplingParams(), "r")
    assert account.refused is not None
    assert (account.refused.status, account.refused.code) == (400, "context_length_exceeded")
    assert account.tokens == 0
    assert str(pickle.loads(pickle.dumps(info.value))) == str(info.value)


@pytest.mark.parametrize(
    ("prompt", "tokens"),
    [
        (PROMPT, 3),
        ({"type": "embeds", "prompt_embeds": [[0.0]] * 4}, 4),
        ({"encoder_prompt": {"prompt_token_ids": [1] * 9}, "decoder_prompt": {"prompt_token_ids": [1]}}, 1),
        ("a text", 0),
    ],
)
def test_a_prompt_s_length_is_read_from_what_vllm_rendered(prompt: Any, tokens: int) -> None:
    assert prompt_length(prompt) == tokens


def test_vllm_still_has_the_names_that_the_wrapper_uses() -> None:
    def names(method: Callable[..., Any]) -> list[str]:
        return list(inspect.signature(method).parameters)[1:4]

    assert names(AsyncLLM.generate) == ["prompt", "sampling_params", "request_id"]
    assert names(AsyncLLM.encode) == ["prompt", "pooling_params", "request_id"]
    assert names(OutputProcessor.process_outputs)[0] == "engine_core_outputs"
    assert "request_id" in EngineCoreOutput.__struct_fields__
    asked = SimpleNamespace(request_id="r", external_req_id="e", params=SamplingParams(n=2))
    assert ParentRequest(asked).get_child_info(0)[0] == "0_r"
    assert "await self.add_request(" in inspect.getsource(AsyncLLM.generate)
    assert "await self.add_request(" in inspect.getsource(AsyncLLM.encode)
