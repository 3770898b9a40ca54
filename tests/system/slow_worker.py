"""A worker of vLLM's at a hundredth of its speed, to see that a slow engine is not taken for a hung one."""

import time
from typing import Any

from vllm.v1.worker.cpu_worker import CPUWorker

SLOWDOWN = 100


class SlowWorker(CPUWorker):
    """Slow from its second step on: the first one, before the replica is ready, also prepares kernels for seconds."""

    first = True

    def execute_model(self, *args: Any, **kwargs: Any) -> Any:
        began_s = time.process_time()  # of this rank alone: it also waits for the other one
        result = super().execute_model(*args, **kwargs)
        worked_s = time.process_time() - began_s
        until = time.monotonic() + (0 if self.first else (SLOWDOWN - 1) * worked_s)
        self.first = False
        while time.monotonic() < until:  # as real work does, it takes the processor
            pass
        return result
