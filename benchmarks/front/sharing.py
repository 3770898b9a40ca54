"""Online requests beside a population on **simulated** devices: `python -m benchmarks.front.sharing`.

Our scheduler, which is vLLM's with our bounds, plans steps one ahead as EngineCore does; a step of n tokens takes
a + b·n on a clock of its own. Online requests come at random moments, first alone and then beside a population that
never ends.

    p99_ttft_ratio           p99 of the time to the first token beside the population over that alone
    population_share         the population's tokens/s over those that the online load leaves over: its tokens/s alone,
                             times the share of the time in which the engine, with the online load alone, did nothing
    population_token_share   the same over its tokens/s alone, less the online load's tokens/s: stricter, as an online
                             request that decodes keeps an engine busy which could compute more beside it

Not known here: kernels that are slower for odd sizes, attention over long contexts, the front end.
"""

from __future__ import annotations

import argparse
import itertools
import math
import random
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.common import publish
from benchmarks.load import percentile
from serve_app.settings import SHARING_KEY, SharingSettings

SEATS, BLOCK = 128, 32
ROW_TOKENS, ROW_OUTPUT = 256, 8
POPULATION_PRIORITY = 10
# Rows in the engine at a time.
OPEN_ROWS = 2 * SEATS
BUSY = 0.5
# Requests to warm up: the first one meets whole steps, as nobody expected it.
WARM = 10


class Device(NamedTuple):
    """A step of n tokens takes `fixed_s` + n · `token_s`, times e to the power of normal `noise`, and has `step_tokens`
    at most; online requests are of `prompt` and `output` tokens."""

    name: str
    fixed_s: float
    token_s: float
    step_tokens: int
    prompt: int
    output: int
    noise: float = 0.0


def gpu(name: str, *, gb_per_s: float, tflops: float, step_tokens: int) -> Device:
    """Llama-3.1-8B in bfloat16: a step reads 16.1 GB of weights at four fifths of the memory's rate, a token costs
    2 · 8.03e9 operations at half of the peak."""
    return Device(name, 16.1 / (0.8 * gb_per_s), 2 * 8.03e9 / (0.5 * tflops * 1e12), step_tokens, 1024, 64)


DEVICES = (
    # As `settings.SimulatedSettings`, which says where it was measured.
    Device("CPU, 2 cores", 0.012, 0.00088, 4096, 128, 16),
    # Where other processes take turns on the cores.
    Device("CPU, shared", 0.040, 0.0015, 4096, 128, 16, noise=0.5),
    # NVIDIA's data sheets: L4 300 GB/s and 121 TFLOPS (bfloat16, dense), H100 SXM 3.35 TB/s and 989 TFLOPS.
    gpu("L4", gb_per_s=300, tflops=121, step_tokens=8192),
    gpu("H100", gb_per_s=3350, tflops=989, step_tokens=32768),
)


class Seen(NamedTuple):
    """What a simulation saw: times to first tokens, and per second: busy time, online and population tokens."""

    ttft_s: list[float]  # as they came
    busy: float
    online_per_s: float
    population_per_s: float


def compare(device: Device, *, requests: int, seed: int = 0, **sharing: Any) -> dict[str, float]:
    """The figures of one device with about so many online requests, one after the other of which would keep it busy for
    half of the time."""
    rate = BUSY / (device.prompt * device.token_s + device.fixed_s * (1 + device.output))
    seconds = requests / rate
    arrivals = list(poisson(rate, seconds, seed))
    alone = simulate(device, arrivals, seconds, population=False, **sharing)
    only = simulate(device, [], seconds / 10, population=True, **sharing)
    both = simulate(device, arrivals, seconds, population=True, **sharing)
    return {
        "p99_ttft_alone_ms": 1000 * percentile(alone.ttft_s[WARM:], 99),
        "p99_ttft_ratio": percentile(both.ttft_s[WARM:], 99) / percentile(alone.ttft_s[WARM:], 99),
        "p50_ttft_ratio": percentile(both.ttft_s[WARM:], 50) / percentile(alone.ttft_s[WARM:], 50),
        "population_share": both.population_per_s / (only.population_per_s * (1 - alone.busy)),
        "population_token_share": both.population_per_s / (only.population_per_s - alone.online_per_s),
        "busy_alone": alone.busy,
        "requests": float(len(arrivals)),
    }


def poisson(rate: float, seconds: float, seed: int) -> Iterator[float]:
    draw, now = random.Random(seed), 0.0
    while (now := now + draw.expovariate(rate)) < seconds:
        yield now


def simulate(device: Device, arrivals: list[float], seconds: float, *, population: bool, **sharing: Any) -> Seen:
    """Run the engine for so many seconds of its own clock."""
    return Simulation(device, arrivals, population=population, sharing=sharing).run(seconds)


class Simulation:
    """EngineCore's loop: plan until two steps are under way, then wait for the first of them."""

    def __init__(self, device: Device, arrivals: list[float], *, population: bool, sharing: dict[str, Any]) -> None:
        self._device = device
        self._now = 0.0
        self._arrivals = deque(arrivals)
        self._population = population
        self._scheduler = make_scheduler(device, lambda: self._now, sharing)
        self._names = itertools.count()
        self._noise = random.Random(0)
        self._came: dict[str, float] = {}
        self._ttft_s: list[float] = []
        self._rows = 0
        self._busy_s = 0.0
        self._tokens = {True: 0, False: 0}

    def run(self, seconds: float) -> Seen:
        under_way: deque[tuple[Any, float, list[str]]] = deque()
        free_at = 0.0
        while self._now < seconds:
            self._take_arrivals()
            if self._scheduler.has_requests():
                plan = self._scheduler.schedule()
                tokens = plan.total_num_scheduled_tokens
                took = (self._device.fixed_s + tokens * self._device.token_s) * bool(tokens) * self._held_up()
                free_at = max(free_at, self._now) + took
                self._busy_s += took
                under_way.append((plan, free_at, self._sampling(plan)))
                if len(under_way) < 2 and tokens:
                    continue
            if under_way:
                plan, done_at, sampling = under_way.popleft()
                self._now = max(self._now, done_at)
                self._finish(plan, sampling)
            elif self._arrivals:
                self._now = self._arrivals[0]
            else:
                break
        lasted = max(self._now, seconds)
        return Seen(self._ttft_s, self._busy_s / lasted, self._tokens[True] / lasted, self._tokens[False] / lasted)

    def _held_up(self) -> float:
        return math.exp(self._noise.gauss(0.0, self._device.noise))

    def _take_arrivals(self) -> None:
        while self._arrivals and self._arrivals[0] <= self._now:
            name = f"online-{next(self._names)}"
            self._came[name] = self._arrivals.popleft()
            add(self._scheduler, name, self._device.prompt, self._device.output, priority=0)
        while self._population and self._rows < OPEN_ROWS:
            self._rows += 1
            add(self._scheduler, f"row-{next(self._names)}", ROW_TOKENS, ROW_OUTPUT, priority=POPULATION_PRIORITY)

    def _sampling(self, plan: Any) -> list[str]:
        """Requests of a plan whose prompt is computed with it: they get a token."""
        found = []
        for name, tokens in plan.num_scheduled_tokens.items():
            request = self._scheduler.requests[name]
            self._tokens[request.priority == 0] += tokens
            if request.num_computed_tokens >= request.num_prompt_tokens:
                found.append(name)
        return found

    def _finish(self, plan: Any, sampling: list[str]) -> None:
        from vllm.v1.outputs import ModelRunnerOutput

        names = list(plan.num_scheduled_tokens)
        index = {name: i for i, name in enumerate(names)}
        output = ModelRunnerOutput(names, index, [[5] if name in sampling else [] for name in names])
        before = set(self._scheduler.requests)
        self._scheduler.update_from_output(plan, output)
        for name in sampling:
            if name in self._came:
                self._ttft_s.append(self._now - self._came.pop(name))
        self._rows -= sum(name.startswith("row-") for name in before - set(self._scheduler.requests))


def make_scheduler(device: Device, now: Callable[[], float], sharing: dict[str, Any]) -> Any:
    """Our scheduler with room for all requests, on a clock of its own."""
    import torch
    from vllm import AsyncEngineArgs
    from vllm.v1.kv_cache_interface import FullAttentionSpec, KVCacheConfig, KVCacheGroupSpec
    from vllm.v1.structured_output import StructuredOutputManager

    from serve_app.engine.scheduler import OnlineFirstAsyncScheduler
    from serve_app.models.default import prepare

    class OnOwnClock(OnlineFirstAsyncScheduler):
        pass

    OnOwnClock.now = staticmethod(now)
    config = AsyncEngineArgs(
        model=str(prepare()),
        max_model_len=4096,
        max_num_batched_tokens=device.step_tokens,
        max_num_seqs=SEATS,
        block_size=BLOCK,
        scheduling_policy="priority",
        enable_prefix_caching=False,
        additional_config={SHARING_KEY: sharing},
    ).create_engine_config()
    blocks = 4 * SEATS * 4096 // BLOCK
    config.cache_config.num_gpu_blocks = blocks
    spec = FullAttentionSpec(block_size=BLOCK, num_kv_heads=2, head_size=64, dtype=torch.bfloat16)
    kv = KVCacheConfig(num_blocks=blocks, kv_cache_tensors=[], kv_cache_groups=[KVCacheGroupSpec(["one"], spec)])
    return OnOwnClock(config, kv, StructuredOutputManager(config), block_size=BLOCK)


def add(scheduler: Any, name: str, prompt: int, output: int, *, priority: int) -> None:
    from vllm import SamplingParams
    from vllm.v1.request import Request

    params = SamplingParams(max_tokens=output, ignore_eos=True)
    params.update_from_generation_config({}, eos_token_id=2)
    scheduler.add_request(Request(name, list(range(3, 3 + prompt)), params, None, priority=priority))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, default=None, help="write the JSON line there too")
    parser.add_argument("--requests", type=int, default=800, help="online requests of each device")
    parser.add_argument("--online-wait-ms", type=float, default=SharingSettings().online_wait_ms)
    args = parser.parse_args()
    wait = {"online_wait_ms": args.online_wait_ms}
    found = {device.name: compare(device, requests=args.requests, **wait) for device in DEVICES}
    keys = list(found[DEVICES[0].name])
    lines = [[name, *(f"{figures[key]:.3g}" for key in keys)] for name, figures in found.items()]
    result = {
        "simulated": True,
        "online_p99_ttft_with_population_ratio": max(one["p99_ttft_ratio"] for one in found.values()),
        "population_share_beside_online": min(one["population_share"] for one in found.values()),
        **wait,
        "devices": {device.name: {**device._asdict(), **found[device.name]} for device in DEVICES},
    }
    publish("online requests beside a population (SIMULATED)", ["", *keys], lines, result, args.json)


if __name__ == "__main__":
    main()
