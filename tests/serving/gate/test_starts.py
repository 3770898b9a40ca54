"""When a request stops waiting: at its first token in the engine, which a whole answer does not show."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace

import pytest
from vllm.sampling_params import SamplingParams

from serve_app.serving.gate.accounting import Account, use
from serve_app.serving.gate.room import Place, Room
from serve_app.settings import AccessSettings
from tests.serving.gate.test_accounting import FINAL, PROMPT, installed, read


@pytest.mark.parametrize("internal_id", ["r", "0_r"])
async def test_a_whole_answer_waits_until_the_engine_s_first_token_not_until_its_end(internal_id: str) -> None:
    engine = installed(hold=True)
    room = Room(AccessSettings(max_queue_s=None), lambda: 0.0)
    place = room.enter("", 0)
    assert isinstance(place, Place)
    with use(Account()) as account:
        account.place = place
        reading = asyncio.create_task(read(engine.generate(PROMPT, SamplingParams(output_kind=FINAL), "r")))
    await asyncio.sleep(0.01)
    engine.output_processor.process_outputs([SimpleNamespace(request_id="another")])
    assert room.waiting == 1
    engine.output_processor.process_outputs([SimpleNamespace(request_id=internal_id)])
    engine.output_processor.process_outputs([SimpleNamespace(request_id=internal_id)])
    assert room.waiting == 0
    reading.cancel()
    await asyncio.wait({reading})
    place.leave()
    assert room.waiting == 0
