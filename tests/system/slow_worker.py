"""A worker of vLLM's at a hundredth of its speed, to see that a slow engine is not taken for a hung one."""

import time
from typing import Any

import torch
from vllm.distributed import get_tp_group
from vllm.v1.worker.cpu_worker import CPUWorker

SLOWDOWN = 100


class SlowWorker(CPUWorker):
    """Slow from its second step on: the first one, before the replica is ready, also prepares kernels for seconds."""

    first = True

    def execute_model(self, *args: Any, **kwargs: Any) -> Any:
        began_s = time.process_time()  # of this rank alone: it also waits for the other one
        result = super().execute_model(*args, **kwargs)
        # The ranks of a slow step are slow together: its layers wait for each other. Slowed by its own share each, one
        # would begin the next step seconds before the other, and idle there.
        worked_s = torch.tensor(time.process_time() - began_s)
        torch.distributed.all_reduce(worked_s, torch.distributed.ReduceOp.MAX, group=get_tp_group().cpu_group)
        until = time.monotonic() + (0 if self.first else (SLOWDOWN - 1) * worked_s.item())
        self.first = False
        while time.monotonic() < until:  # as real work does, it takes the processor
            pass
        return result
