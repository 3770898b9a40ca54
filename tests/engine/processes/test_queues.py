import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from serve_app.engine.processes.queues import wait_asleep


@pytest.mark.engine
def test_readers_of_vllms_queues_wait_asleep_and_need_no_notice(monkeypatch: pytest.MonkeyPatch) -> None:
    from vllm.distributed.device_communicators.shm_broadcast import MessageQueue, SpinCondition

    monkeypatch.setattr(SpinCondition, "__init__", SpinCondition.__init__)
    monkeypatch.setattr(SpinCondition, "wait", SpinCondition.wait)
    wait_asleep()
    writer = MessageQueue(n_reader=1, n_local_reader=1)
    reader = MessageQueue.create_from_handle(writer.export_handle(), 0)
    with ThreadPoolExecutor() as pool:
        ready = pool.submit(reader.wait_until_ready)
        writer.wait_until_ready()
        ready.result()
        for notice in (True, False):
            if not notice:
                monkeypatch.setattr(SpinCondition, "notify", lambda self: None)
            read = pool.submit(reader.dequeue, 60)
            used = time.process_time()
            time.sleep(0.8)  # vLLM's own reader takes a core for a second after each message
            assert time.process_time() - used < 0.4
            assert not read.done()
            writer.enqueue({"notice": notice})
            assert read.result(timeout=60) == {"notice": notice}
