"""How many tokens fit into a time, from measured steps; without an engine."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from functools import partial

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve_app.engine.steps import LEAST_FIXED, LEAST_TOKENS, StepClock, tokens_beside, tokens_between
from serve_app.settings import SharingSettings

MOST = 32_768
# From a GPU's weights read in 4 ms to a slow processor's 200.
fixed_s = st.floats(0.001, 0.2)
token_s = st.floats(1e-5, 1e-2)


def settled(grant: Callable[[], int]) -> int:
    """What is granted in the end, as it at most doubles from step to step."""
    granted = [grant() for _ in range(16)]
    assert all(after <= 2 * before for before, after in itertools.pairwise(granted))
    return granted[-1]


def mixed(fixed: float, token: float) -> list[int]:
    """Short steps, and ones that compute for longer than their fixed part: those tell both."""
    return [8, 64 + int(2 * fixed / token)] * 3


def learned(fixed: float, token: float, steps: list[int], max_step_s: float | None = 1.0) -> StepClock:
    """A clock that saw steps of these tokens on a machine, one after the other."""
    now = [0.0]
    clock = StepClock(max_step_s, first=MOST, most=MOST, now=lambda: now[0])
    for tokens in steps:
        step = object()
        clock.planned(step, tokens)
        now[0] += fixed + token * tokens
        clock.done(step, tokens)
    return clock


@given(fixed_s, token_s, st.integers(0, 30))
def test_a_machines_times_are_learned_from_steps_of_different_lengths(fixed: float, token: float, others: int) -> None:
    clock = learned(fixed, token, [64] * others + mixed(fixed, token))
    assert clock.token_s == pytest.approx(token, rel=0.1)
    assert clock.fixed_s == pytest.approx(fixed, rel=0.1)


@given(fixed_s, token_s, st.integers(1, 4096), st.floats(1, 1000), st.integers(1, 2))
def test_steps_beside_online_requests_make_the_next_one_wait_no_longer_than_asked(
    fixed: float, token: float, online: int, wait_ms: float, ahead: int
) -> None:
    clock = learned(fixed, token, mixed(fixed, token))
    tokens = settled(lambda: tokens_beside(clock, online, wait_ms / 1000, ahead=ahead))
    assert tokens == LEAST_TOKENS or ahead * tokens * token <= 1.1 * max(wait_ms / 1000, fixed)
    assert tokens == LEAST_TOKENS or tokens * token <= 1.2 * (fixed + token * online)


@given(fixed_s, token_s, st.floats(1, 1000))
def test_steps_between_online_requests_keep_two_thirds_of_the_rate_or_last_as_long_as_one_may_wait(
    fixed: float, token: float, wait_ms: float
) -> None:
    clock = learned(fixed, token, mixed(fixed, token), max_step_s=None)
    sharing = SharingSettings(online_wait_ms=wait_ms, max_step_s=None)
    tokens = settled(lambda: tokens_between(clock, sharing, 0.0))
    took = fixed + tokens * token
    assert took <= max(wait_ms / 1000, (1 + LEAST_FIXED) * fixed, fixed + LEAST_TOKENS * token) * 1.15
    assert tokens in (LEAST_TOKENS, MOST) or took >= min(wait_ms / 1000, (1 + LEAST_FIXED) * fixed) * 0.85


@given(fixed_s, token_s, st.lists(st.floats(0, 600), min_size=2, max_size=5))
def test_steps_grow_with_the_pause_up_to_whole_ones(fixed: float, token: float, pauses: list[float]) -> None:
    clock = learned(fixed, token, mixed(fixed, token))
    sharing = SharingSettings()
    sizes = [settled(partial(tokens_between, clock, sharing, pause)) for pause in [*sorted(pauses), 600.0]]
    assert sizes == sorted(sizes)
    assert sizes[-1] == pytest.approx(clock.tokens, abs=1)


@given(fixed_s, token_s, st.integers(1, 64))
def test_a_machine_is_learned_beside_online_requests_alone(fixed: float, token: float, online: int) -> None:
    now = [0.0]
    clock = StepClock(1.0, first=64, most=MOST, now=lambda: now[0])
    for _ in range(40):
        tokens = tokens_beside(clock, online, 0.05, ahead=2)
        step = object()
        clock.planned(step, online + tokens)
        now[0] += fixed + token * (online + tokens)
        clock.done(step, online + tokens)
    right = min(max(0.05, fixed) / 2, fixed + token * online) / token
    assert tokens == pytest.approx(max(LEAST_TOKENS, right), rel=0.3, abs=1)


def test_the_same_default_gives_a_gpu_and_a_processor_what_each_computes_in_that_time() -> None:
    cpu = learned(0.012, 0.00088, [8, 256, 8, 256])
    gpu = learned(0.005, 0.000032, [8, 4096, 8, 4096])
    between = [settled(partial(tokens_between, clock, SharingSettings(), 0.0)) for clock in (cpu, gpu)]
    assert between == pytest.approx([27, 625], rel=0.1)
