"""Work whose client may leave."""

import asyncio

import pytest

from serve_app.serving.requests.disconnect import until_disconnect


class Client:
    """Its `receive` says that it left once it has."""

    def __init__(self) -> None:
        self.left = asyncio.Event()
        self.received = 0

    async def receive(self) -> dict[str, str]:
        self.received += 1
        if self.received == 1:
            return {"type": "http.request"}
        await self.left.wait()
        return {"type": "http.disconnect"}


def others() -> set["asyncio.Task[object]"]:
    return asyncio.all_tasks() - {asyncio.current_task()}


async def test_work_that_is_done_first_has_its_result() -> None:
    async def work() -> int:
        await asyncio.sleep(0)
        return 1

    async with until_disconnect(Client().receive, work()) as working:
        assert working.result() == 1
    assert not others()


async def test_work_is_cancelled_once_its_client_has_left() -> None:
    client = Client()

    async def work() -> None:
        client.left.set()
        await asyncio.Event().wait()

    async with until_disconnect(client.receive, work()) as working:
        assert not working.done()
    assert working.cancelled()
    assert not others()


async def test_what_the_work_raises_comes_out_of_the_block_and_leaves_no_task() -> None:
    async def work() -> None:
        raise LookupError

    with pytest.raises(LookupError):
        async with until_disconnect(Client().receive, work()) as working:
            working.result()
    assert not others()


async def test_who_is_cancelled_while_it_waits_ends_the_work() -> None:
    ended = asyncio.Event()

    async def work() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    async def wait() -> None:
        async with until_disconnect(Client().receive, work()):
            pass

    waiting = asyncio.create_task(wait())
    await asyncio.sleep(0.01)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert ended.is_set()
