"""Trying again while the store is away."""

import asyncio
import logging
from collections.abc import Iterator

import pytest
import stamina

from serve_app.driver.store.retries import log_retries, while_store_is_away
from serve_app.errors import JobConflict, StoreError


class Call:
    """Raises the errors, one a call, then the last for ever; without errors left it answers."""

    def __init__(self, *errors: Exception, for_ever: bool = False) -> None:
        self.errors = list(errors)
        self.for_ever = for_ever
        self.calls = 0

    async def __call__(self) -> str:
        self.calls += 1
        if self.errors:
            raise self.errors[0] if self.for_ever else self.errors.pop(0)
        return "answered"


async def test_a_store_that_comes_back_is_asked_again(no_pauses: None) -> None:
    call = Call(StoreError("away"), StoreError("away"))
    assert await while_store_is_away(call) == "answered"
    assert call.calls == 3


async def test_another_error_is_raised_at_once(no_pauses: None) -> None:
    call = Call(StoreError("away"), JobConflict("taken"))
    with pytest.raises(JobConflict):
        await while_store_is_away(call)
    assert call.calls == 2


async def test_without_patience_nothing_is_tried_again() -> None:
    call = Call(StoreError("away"))
    with pytest.raises(StoreError, match="away"):
        await while_store_is_away(call, patience_s=lambda: 0.0)
    assert call.calls == 1


async def test_patience_that_ends_meanwhile_ends_the_trying(no_pauses: None) -> None:
    call = Call(StoreError("away"), for_ever=True)
    with pytest.raises(StoreError):
        await while_store_is_away(call, patience_s=lambda: 60.0 if call.calls < 5 else 0.0)
    assert call.calls == 5


async def test_a_cancel_ends_it_in_the_pause() -> None:
    call = Call(StoreError("away"), for_ever=True)
    trying = asyncio.create_task(while_store_is_away(call))
    while not call.calls:
        await asyncio.sleep(0)
    trying.cancel()
    await asyncio.wait([trying], timeout=0.2)  # the pause is half a second
    assert trying.cancelled()
    assert call.calls == 1


async def test_a_cancel_ends_it_in_the_call() -> None:
    began, calls = asyncio.Event(), 0

    async def call() -> None:
        nonlocal calls
        calls += 1
        began.set()
        await asyncio.Event().wait()

    trying = asyncio.create_task(while_store_is_away(call))
    await began.wait()
    trying.cancel()
    await asyncio.wait([trying], timeout=1)
    assert trying.cancelled()
    assert calls == 1


@pytest.fixture
def logged() -> Iterator[None]:
    log_retries()
    yield
    stamina.instrumentation.set_on_retry_hooks(None)


async def test_a_retry_is_logged_as_a_sentence(logged: None, no_pauses: None, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        await while_store_is_away(Call(StoreError("store: cannot write x: disk on fire")))
    assert caplog.messages == ["trying again in 0.0 s: store: cannot write x: disk on fire"]
