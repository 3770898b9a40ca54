"""The router over fake replicas: no Ray runs, but the router's base class and its loop are Ray's own."""

from __future__ import annotations

import asyncio
import itertools
from collections import Counter
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ray.serve._private.common import DeploymentHandleSource, DeploymentID, ReplicaID, RequestMetadata
from ray.serve._private.request_router.common import PendingRequest

from serve_app.serving.router import SessionRouter, overloaded, preferred
from serve_app.settings import RoutingSettings

DEPLOYMENT = DeploymentID(name="Replica", app_name="replicas")
NAMES = [f"replica{i}" for i in range(8)]
numbers = itertools.count()
SESSIONS = [f"session {i}" for i in range(400)]


@dataclass
class FakeReplica:
    """What the router reads of a RunningReplica; `queue_len` is what the replica says when it is asked."""

    name: str
    queue_len: int = 0
    max_ongoing_requests: int = 100
    asked: int = 0

    @property
    def replica_id(self) -> ReplicaID:
        return ReplicaID(unique_id=self.name, deployment_id=DEPLOYMENT)

    async def get_queue_len(self, *, deadline_s: float) -> int:
        self.asked += 1
        return self.queue_len


def router(replicas: list[FakeReplica], queued: dict[str, int] | None = None, **changes: Any) -> SessionRouter:
    """As Serve makes it; `queued` is what its cache knows."""
    made = SessionRouter(
        deployment_id=DEPLOYMENT,
        handle_source=DeploymentHandleSource.REPLICA,
        use_replica_queue_len_cache=True,
        initial_backoff_s=0.001,
    )
    made.initialize_state(**RoutingSettings(**changes).model_dump())
    made.update_replicas(replicas)
    for replica in replicas:
        if queued and replica.name in queued:
            replica.queue_len = queued[replica.name]
            made.replica_queue_len_cache.update(replica.replica_id, replica.queue_len)
    return made


def request(session: str = "") -> PendingRequest:
    metadata = RequestMetadata(
        request_id="r", internal_request_id=f"i{next(numbers)}", call_method="m", session_id=session, is_streaming=False
    )
    return PendingRequest(args=[], kwargs={}, metadata=metadata)


def fakes(*names: str) -> list[FakeReplica]:
    return [FakeReplica(name) for name in names or NAMES]


async def ranks(made: SessionRouter, pending: PendingRequest) -> list[list[str]]:
    chosen = await made.choose_replicas(list(made.curr_replicas.values()), pending)
    return [[replica.replica_id.unique_id for replica in rank] for rank in chosen]


async def test_every_choice_lets_the_router_back_off() -> None:
    made = router(fakes())
    for pending in (request(), request("session")):
        await ranks(made, pending)
        assert pending.routing_context.should_backoff


# --- calls without session ---


async def test_a_call_without_session_goes_to_two_at_random() -> None:
    made = router(fakes())
    seen: Counter[str] = Counter()
    for _ in range(400):
        ((first, second),) = await ranks(made, request())
        assert first != second
        seen.update((first, second))
    assert set(seen) == set(NAMES)
    assert min(seen.values()) > 50  # of 100 on average


async def test_of_the_two_the_less_loaded_is_picked() -> None:
    made = router(fakes("busy", "idle"), {"busy": 5, "idle": 4})
    picked = [await made._choose_replica_for_request(request()) for _ in range(5)]
    assert {replica.replica_id.unique_id for replica in picked} == {"idle"}


@pytest.mark.parametrize("session", ["", "some session"])
async def test_a_lone_replica_gets_all(session: str) -> None:
    assert await ranks(router(fakes("only"), {"only": 90}), request(session)) == [["only"]]


async def test_without_its_settings_the_router_knows_no_sessions() -> None:
    made = SessionRouter(deployment_id=DEPLOYMENT, handle_source=DeploymentHandleSource.REPLICA)
    made.initialize_state()
    made.update_replicas(fakes())
    firsts = {(await ranks(made, request("same")))[0][0] for _ in range(100)}
    assert len(firsts) > 1


async def test_affinity_can_be_turned_off() -> None:
    made = router(fakes(), session_affinity=False)
    assert len({(await ranks(made, request("same")))[0][0] for _ in range(100)}) > 1


# --- sessions ---


async def test_a_session_has_one_replica_for_every_router_and_in_any_order() -> None:
    one, other = router(fakes(*NAMES)), router(fakes(*reversed(NAMES)))
    for session in SESSIONS[:50]:
        first, rest = await ranks(one, request(session))
        assert (await ranks(other, request(session)))[0] == first
        assert len(first) == 1
        assert len(rest) == 2
        assert first[0] not in rest


async def test_sessions_are_spread_over_all_replicas() -> None:
    count = Counter(preferred(session, NAMES) for session in SESSIONS)
    assert set(count) == set(NAMES)
    assert max(count.values()) < 2 * len(SESSIONS) / len(NAMES)


@settings(max_examples=50, deadline=None)
@given(names=st.sets(st.text(min_size=1, max_size=8), min_size=2, max_size=12), data=st.data())
def test_a_replica_that_leaves_moves_only_its_own_sessions_and_one_that_joins_takes_only_its_own(
    names: set[str], data: st.DataObject
) -> None:
    gone = data.draw(st.sampled_from(sorted(names)))
    for session in SESSIONS[:100]:
        with_it, without = preferred(session, sorted(names)), preferred(session, names - {gone})
        assert with_it in (without, gone)


def test_a_ninth_replica_takes_about_a_ninth_of_the_sessions() -> None:
    moved = sum(preferred(session, [*NAMES, "ninth"]) == "ninth" for session in SESSIONS)
    assert 0.5 < moved / (len(SESSIONS) / 9) < 1.6


async def test_a_session_leaves_its_replica_while_that_has_much_more_to_do_than_the_others() -> None:
    home = preferred("s", NAMES)
    busy = dict.fromkeys(NAMES, 4) | {home: 15}
    away = await ranks(router(fakes(), busy), request("s"))
    assert len(away) == 1
    assert home not in away[0]
    assert (await ranks(router(fakes(), busy | {home: 14}), request("s")))[0] == [home]  # 8 + 1.5 × 4


async def test_an_imbalance_among_the_others_does_not_move_a_session() -> None:
    home = preferred("s", NAMES)
    others = [name for name in NAMES if name != home]
    queued = dict.fromkeys(NAMES, 10) | {others[0]: 90, others[1]: 0}
    assert (await ranks(router(fakes(), queued), request("s")))[0] == [home]


async def test_one_idle_newcomer_does_not_draw_the_sessions_away() -> None:
    home = preferred("s", NAMES)
    newcomer = next(name for name in NAMES if name != home)
    assert (await ranks(router(fakes(), dict.fromkeys(NAMES, 30) | {newcomer: 0}), request("s")))[0] == [home]


async def test_what_is_not_known_of_the_load_moves_no_session() -> None:
    home = preferred("s", NAMES)
    assert (await ranks(router(fakes()), request("s")))[0] == [home]
    assert (await ranks(router(fakes(), {home: 99}), request("s")))[0] == [home]
    others = {name: 0 for name in NAMES if name != home}
    assert (await ranks(router(fakes(), others), request("s")))[0] == [home]


async def test_a_full_replicas_session_goes_to_another_at_once() -> None:
    home = preferred("s", NAMES)
    replicas = [FakeReplica(name, queue_len=100 if name == home else 0) for name in NAMES]
    made = router(replicas)
    async with asyncio.timeout(10):
        picked = await made._choose_replica_for_request(request("s"))
    assert picked.replica_id.unique_id != home


@given(own=st.integers(0, 50), more=st.integers(0, 50), others=st.lists(st.integers(0, 50), min_size=1, max_size=5))
def test_a_replica_with_more_to_do_is_not_less_overloaded(own: int, more: int, others: list[int]) -> None:
    def at(calls: int) -> bool:
        queued = {"own": calls} | {str(i): count for i, count in enumerate(others)}
        return overloaded("own", queued, slack_requests=8, load_factor=1.5)

    assert at(own + more) or not at(own)
    assert not at(min(others))  # nobody is overloaded who has no more to do than any other


async def test_a_session_of_any_characters_has_a_replica() -> None:
    for session in ("ü/🦜", "\udcff", "x" * 10_000):
        assert (await ranks(router(fakes()), request(session)))[0][0] in NAMES
