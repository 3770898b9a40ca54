"""Online requests first: vLLM's own scheduler, asked for one step after the other, without a model behind it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from serve_app.engine.steps import LEAST_TOKENS
from serve_app.models.default import prepare
from serve_app.settings import SHARING_KEY

pytestmark = pytest.mark.engine

STEP_TOKENS, SEATS, BLOCK = 512, 16, 32
# The machine: a step of n tokens takes FIXED_S + n · TOKEN_S.
FIXED_S, TOKEN_S = 0.010, 0.001
ONLINE, POPULATION = 0, 10
Make = Callable[..., Any]
NOW = [0.0]


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The scheduler's clock: its only entry is the time."""
    NOW[0] = 100.0
    monkeypatch.setattr("serve_app.engine.scheduler.OnlineFirst.now", staticmethod(lambda: NOW[0]))
    return NOW


@pytest.fixture(params=["OnlineFirstScheduler", "OnlineFirstAsyncScheduler"])
def make(request: pytest.FixtureRequest) -> Make:
    """A scheduler by its settings; `blocks` of KV cache."""
    import torch
    from vllm import AsyncEngineArgs
    from vllm.v1.kv_cache_interface import FullAttentionSpec, KVCacheConfig, KVCacheGroupSpec
    from vllm.v1.structured_output import StructuredOutputManager

    from serve_app.engine import scheduler

    def build(blocks: int = 1000, policy: Any = "priority", **sharing: Any) -> Any:
        config = AsyncEngineArgs(
            model=str(prepare()),
            max_model_len=4096,
            max_num_batched_tokens=STEP_TOKENS,
            max_num_seqs=SEATS,
            block_size=BLOCK,
            scheduling_policy=policy,
            enable_prefix_caching=False,
            additional_config={SHARING_KEY: {"max_step_s": None, **sharing}},
        ).create_engine_config()
        config.cache_config.num_gpu_blocks = blocks
        spec = FullAttentionSpec(block_size=BLOCK, num_kv_heads=2, head_size=64, dtype=torch.bfloat16)
        kv = KVCacheConfig(num_blocks=blocks, kv_cache_tensors=[], kv_cache_groups=[KVCacheGroupSpec(["one"], spec)])
        return getattr(scheduler, request.param)(config, kv, StructuredOutputManager(config), block_size=BLOCK)

    return build


def add(scheduler: Any, name: str, tokens: int, priority: int, max_tokens: int = 100) -> None:
    from vllm import SamplingParams
    from vllm.v1.request import Request

    params = SamplingParams(max_tokens=max_tokens, ignore_eos=True)
    params.update_from_generation_config({}, eos_token_id=2)
    scheduler.add_request(Request(name, list(range(3, 3 + tokens)), params, None, priority=priority))


def step(scheduler: Any) -> dict[str, int]:
    """Plan a step and have it computed. Tokens by request."""
    planned = scheduler.schedule()
    NOW[0] += FIXED_S + TOKEN_S * planned.total_num_scheduled_tokens
    finish(scheduler, planned)
    return dict(planned.num_scheduled_tokens)


def finish(scheduler: Any, planned: Any) -> None:
    """Have a step computed: each request that has no prompt left gets token 5."""
    from vllm.v1.outputs import ModelRunnerOutput

    names = list(planned.num_scheduled_tokens)
    done = [scheduler.requests[name].num_computed_tokens >= scheduler.requests[name].num_tokens for name in names]
    sampled = [[5] if one else [] for one in done]
    order = {name: i for i, name in enumerate(names)}
    scheduler.update_from_output(planned, ModelRunnerOutput(names, order, sampled))


def fill(scheduler: Any, rows: int, tokens: int = 200) -> None:
    for i in range(rows):
        add(scheduler, f"row-{i}", tokens, POPULATION)


def test_without_online_requests_populations_get_whole_steps(make: Make) -> None:
    scheduler = make()
    fill(scheduler, 10)
    assert sum(step(scheduler).values()) == STEP_TOKENS


def test_an_online_request_that_waits_gets_the_next_step_for_itself(make: Make) -> None:
    scheduler = make()
    fill(scheduler, 10)
    step(scheduler)
    add(scheduler, "online", 300, ONLINE)
    assert step(scheduler) == {"online": 300}


@pytest.mark.parametrize("wait_ms", [5.0, 16.0, 50.0])
def test_beside_an_online_request_populations_get_the_time_that_the_next_one_may_wait(
    make: Make, wait_ms: float
) -> None:
    scheduler = make(online_wait_ms=wait_ms)
    fill(scheduler, 10)
    step(scheduler)
    add(scheduler, "online", 300, ONLINE)
    step(scheduler)
    for _ in range(3):
        taken = step(scheduler)
        assert taken.pop("online") == 1
        share_s = min(
            max(wait_ms / 1000, FIXED_S) / scheduler.ahead, FIXED_S + TOKEN_S
        )  # in each of the steps that are under way
        assert sum(taken.values()) == pytest.approx(max(LEAST_TOKENS, share_s / TOKEN_S), abs=1)


def test_a_bound_of_zero_stops_populations_while_online_requests_are_open(make: Make) -> None:
    scheduler = make(online_wait_ms=0)
    fill(scheduler, 4)
    step(scheduler)
    add(scheduler, "online", 10, ONLINE, max_tokens=3)
    assert [step(scheduler) for _ in range(3)] == [{"online": 10}, {"online": 1}, {"online": 1}]


def test_after_the_last_online_request_steps_grow_to_whole_ones(make: Make, clock: list[float]) -> None:
    scheduler = make(blocks=3000, online_wait_ms=50, standby_s=60.0)
    fill(scheduler, 2 * SEATS, tokens=3900)
    assert sum(step(scheduler).values()) == STEP_TOKENS
    add(scheduler, "online", 10, ONLINE, max_tokens=1)
    assert step(scheduler) == {"online": 10}
    whole_s = FIXED_S + TOKEN_S * STEP_TOKENS
    began = clock[0] - FIXED_S - 10 * TOKEN_S
    for idle_s in (0.1, 6.0, 30.0):
        clock[0] = began + idle_s
        for _ in range(5):  # it at most doubles from step to step
            idle_s = clock[0] - began
            taken = sum(step(scheduler).values())
        assert taken == pytest.approx((max(0.050, whole_s * idle_s / 60.0) - FIXED_S) / TOKEN_S, abs=3)
    clock[0] = began + 60.1
    assert sum(step(scheduler).values()) == STEP_TOKENS


def test_a_step_for_populations_alone_is_not_planned_ahead_while_an_online_request_may_come(make: Make) -> None:
    scheduler = make()
    fill(scheduler, 10)
    add(scheduler, "online", 10, ONLINE, max_tokens=1)
    step(scheduler)
    first = scheduler.schedule()
    assert first.total_num_scheduled_tokens
    ahead = scheduler.schedule()
    assert not ahead.total_num_scheduled_tokens
    finish(scheduler, first)
    finish(scheduler, ahead)
    assert scheduler.schedule().total_num_scheduled_tokens


def test_null_leaves_vllms_own_order(make: Make) -> None:
    scheduler = make(online_wait_ms=None)
    fill(scheduler, 1, tokens=2000)
    step(scheduler)
    add(scheduler, "online", 300, ONLINE)
    assert "online" not in step(scheduler)


def test_a_long_online_prompt_takes_whole_steps(make: Make) -> None:
    scheduler = make()
    fill(scheduler, 3)
    add(scheduler, "online", 1000, ONLINE)
    assert step(scheduler) == {"online": STEP_TOKENS}
    assert step(scheduler)["online"] == 1000 - STEP_TOKENS


def test_a_seat_is_free_for_an_online_request_though_rows_wait(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(globals(), "FIXED_S", 0.1)  # so that steps have room for more rows than seats
    scheduler = make(online_wait_ms=200)
    add(scheduler, "first", 10, ONLINE)
    fill(scheduler, 3 * SEATS, tokens=4)
    for _ in range(20):
        step(scheduler)
    assert len(scheduler.running) == SEATS - SEATS // 8
    add(scheduler, "second", 10, ONLINE)
    assert "second" in step(scheduler)


def test_rows_go_on_when_no_seat_is_free_for_the_online_request(make: Make) -> None:
    scheduler = make()
    fill(scheduler, 2 * SEATS, tokens=4)
    step(scheduler)
    add(scheduler, "online", 10, ONLINE)
    assert sum(step(scheduler).values()) > 0
    assert len(scheduler.running) == SEATS


def test_rows_go_on_when_the_kv_cache_has_no_room_for_the_online_request(make: Make) -> None:
    scheduler = make(blocks=16)
    fill(scheduler, 2)
    step(scheduler)
    add(scheduler, "online", 300, ONLINE)
    taken = [step(scheduler) for _ in range(3)]
    assert any(name.startswith("row") for one in taken for name in one)


def test_a_health_probe_does_not_shorten_steps(make: Make) -> None:
    from serve_app.settings import PROBE_PRIORITY

    scheduler = make()
    fill(scheduler, 10)
    add(scheduler, "probe", 1, PROBE_PRIORITY, max_tokens=1)
    assert sum(step(scheduler).values()) == STEP_TOKENS


@pytest.mark.parametrize("ms_per_token", [0.01, 2.0, 15.0, 200.0])
def test_a_step_takes_about_its_bound_whatever_the_machines_speed(
    make: Make, clock: list[float], ms_per_token: float
) -> None:
    scheduler = make(max_step_s=1.0)
    fill(scheduler, 40, tokens=400)
    taken = []
    for _ in range(12):
        planned = scheduler.schedule()
        taken.append(planned.total_num_scheduled_tokens)
        clock[0] += taken[-1] * ms_per_token / 1000
        finish(scheduler, planned)
    assert taken[0] == 64  # nothing is known yet
    assert taken[-1] == pytest.approx(min(STEP_TOKENS, max(LEAST_TOKENS, int(1000 / ms_per_token))), rel=0.25)


def test_a_step_that_was_held_up_shortens_the_next_ones_for_a_while_only(make: Make, clock: list[float]) -> None:
    scheduler = make(blocks=3000, max_step_s=1.0)
    fill(scheduler, SEATS, tokens=3900)

    def steps(count: int, ms_per_token: float) -> int:
        for _ in range(count):
            planned = scheduler.schedule()
            tokens = planned.total_num_scheduled_tokens
            clock[0] += tokens * ms_per_token / 1000
            finish(scheduler, planned)
        return int(tokens)

    assert steps(5, 2.0) == pytest.approx(500, rel=0.1)
    steps(1, 100.0)
    assert 500 / 4 <= steps(1, 2.0) < 300
    assert steps(40, 2.0) == pytest.approx(500, rel=0.1)


def test_steps_are_not_shortened_below_what_each_of_them_costs_anyhow(make: Make, clock: list[float]) -> None:
    scheduler = make(max_step_s=1.0)
    fill(scheduler, 80, tokens=400)
    for _ in range(30):
        planned = scheduler.schedule()
        tokens = planned.total_num_scheduled_tokens
        clock[0] += 2.0 + tokens * 0.010  # a machine so busy that the shortest step takes two seconds
        finish(scheduler, planned)
    assert tokens == pytest.approx(200, rel=0.1)  # as long again


def test_short_steps_say_nothing_of_long_ones(make: Make, clock: list[float]) -> None:
    scheduler = make(max_step_s=1.0)
    for i in range(8):  # as of an idle engine's probes
        add(scheduler, f"probe-{i}", 1, POPULATION, max_tokens=1)
        planned = scheduler.schedule()
        clock[0] += 0.001
        finish(scheduler, planned)
    fill(scheduler, 10)
    assert sum(step(scheduler).values()) == 64


@pytest.mark.parametrize("policy", ["priority", "fcfs"])
def test_the_engine_uses_it_unless_it_was_given_another_one(policy: str) -> None:
    from vllm import AsyncEngineArgs

    from serve_app.engine.launch import use_our_scheduler
    from serve_app.settings import SharingSettings

    config = AsyncEngineArgs(model=str(prepare()), scheduling_policy=policy).create_engine_config()
    for ahead, name in ((False, "OnlineFirstScheduler"), (True, "OnlineFirstAsyncScheduler")):
        config.scheduler_config.scheduler_cls, config.scheduler_config.async_scheduling = None, ahead
        use_our_scheduler(config, SharingSettings(online_wait_ms=7))
        assert config.scheduler_config.scheduler_cls == f"serve_app.engine.scheduler.{name}"
        assert config.additional_config[SHARING_KEY]["online_wait_ms"] == 7
    config.scheduler_config.scheduler_cls = "somebody.elses"
    use_our_scheduler(config, SharingSettings())
    assert config.scheduler_config.scheduler_cls == "somebody.elses"


def test_without_priorities_the_order_is_vllms_own(make: Make) -> None:
    scheduler = make(policy="fcfs")
    fill(scheduler, 1, tokens=2000)
    step(scheduler)
    add(scheduler, "online", 300, ONLINE)
    assert "online" not in step(scheduler)
