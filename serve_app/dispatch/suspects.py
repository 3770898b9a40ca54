"""Which rows may have ended a replica.

A death says nothing about one row among hundreds. So suspects run again alone, and only one that was alone when another
replica died is the culprit; that explains all its deaths, and the other suspects are free. What other clients send by
HTTP is not seen here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from serve_app.errors import EngineFailed, ReplicaLost

# The replica failed, not the chunk.
DEATHS = (EngineFailed, ReplicaLost)


@dataclass(slots=True, eq=False)
class Death:
    """One replica's end. `by_engine`: its engine died, the process lived to tell.

    `alone`: a single suspect was running. `explained`: its culprit is known.
    """

    replica_id: str
    by_engine: bool
    alone: bool
    explained: bool = False


def is_suspect(deaths: Sequence[Death]) -> bool:
    """Whether a row with these deaths has to run alone.

    A lost process or node was nearly always killed from outside: it counts from the second time on.
    """
    open_deaths = [death for death in deaths if not death.explained]
    return len(open_deaths) > 1 or any(death.by_engine for death in open_deaths)


def is_culprit(deaths: Sequence[Death], max_losses: int) -> bool:
    """Whether the last death proves the row to be the culprit: alone when an engine died, or alone in `max_losses`
    losses."""
    last = deaths[-1]
    return last.alone and (last.by_engine or sum(not death.explained for death in deaths) >= max_losses)


def culprit_message(deaths: Sequence[Death]) -> str:
    """Why the row counts as the culprit, for people."""
    alone = ", ".join(death.replica_id for death in deaths if death.alone)
    before = ", ".join(death.replica_id for death in deaths if not death.alone)
    what, ends = ("its engine died", "an engine") if deaths[-1].by_engine else ("it was lost", "replicas")
    also = f", and on board when that happened to {before}" if before else ""
    return f"it was alone on replica {alone} when {what}{also}: the row ends {ends}"
