"""A worker of vLLM's at a hundredth of its speed, to see that a slow engine is not taken for a hung one."""

import time
from typing import Any

from vllm.v1.worker.cpu_worker import CPUWorker

SLOWDOWN = 100


class SlowWorker(CPUWorker):  # type: ignore[misc]
    """Slow from its second step on: the first one, before the replica is ready, also prepares kernels for seconds."""

    first = True

    def execute_model(self, *args: Any, **kwargs: Any) -> Any:
        began = time.monotonic()
        result = super().execute_model(*args, **kwargs)
        now = time.monotonic()
        until = now if self.first else now + (SLOWDOWN - 1) * (now - began)
        self.first = False
        while time.monotonic() < until:  # as real work does, it takes the processor
            pass
        return result
