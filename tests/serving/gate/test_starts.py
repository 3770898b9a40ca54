"""When a request stops waiting: at its first token in the engine, which a whole answer does not show."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest
from vllm.sampling_params import SamplingParams
from vllm.v1.engine import EngineCoreOutput
from vllm.v1.engine.output_processor import OutputProcessor

from serve_app.serving.gate.accounting import Account, install, use
from serve_app.serving.gate.room import Place, Room
from serve_app.settings import AccessSettings
from tests.serving.gate.test_accounting import FINAL, PROMPT, FakeEngine, installed, read


async def begun(engine: FakeEngine) -> tuple[Room, Place, asyncio.Task[Any]]:
    """A request that holds a place and is being read."""
    room = Room(AccessSettings(max_queue_s=None), lambda: 0.0)
    place = room.enter("", 0)
    assert isinstance(place, Place)
    with use(Account()) as account:
        account.place = place
        reading = asyncio.create_task(read(engine.generate(PROMPT, SamplingParams(output_kind=FINAL), "r")))
    await asyncio.sleep(0.01)
    return room, place, reading


@pytest.mark.parametrize("internal_id", ["r", "0_r"])
async def test_a_whole_answer_waits_until_the_engine_s_first_token_not_until_its_end(internal_id: str) -> None:
    engine = installed(hold=True)
    room, place, reading = await begun(engine)
    engine.output_processor.process_outputs([SimpleNamespace(request_id="another")])
    assert room.waiting == 1
    engine.output_processor.process_outputs([SimpleNamespace(request_id=internal_id)])
    engine.output_processor.process_outputs([SimpleNamespace(request_id=internal_id)])
    assert room.waiting == 0
    reading.cancel()
    await asyncio.wait({reading})
    place.leave()
    assert room.waiting == 0


async def test_vllm_s_own_output_processor_tells_of_starts() -> None:
    processor = OutputProcessor(tokenizer=None, log_stats=False)
    engine = FakeEngine([], hold=True)
    engine.output_processor = processor
    install(engine)
    room, _, reading = await begun(engine)
    assert room.waiting == 1
    processor.process_outputs([EngineCoreOutput(request_id="r", new_token_ids=[4])])
    assert room.waiting == 0
    reading.cancel()
    await asyncio.wait({reading})
