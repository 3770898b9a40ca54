"""Which rows may have ended a replica: who was on board when it died, and who was alone.

Knows deaths and the rows they took with them; does not know queues, or how a replica is asked. A death says nothing
about one row among hundreds. So rows that may be guilty run again alone, and only one that was alone when another
replica died is convicted; that explains every death it was on board of, and the other suspects are free.

What others send to a replica at the same time, as HTTP requests, is not seen from here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from serve_app.errors import EngineFailed, ReplicaLost

# What `ReplicaPool.run` raises when not the chunk failed but what it ran on.
DEATHS = (EngineFailed, ReplicaLost)


@dataclass(slots=True, eq=False)
class Death:
    """One replica's end. `by_engine`: its engine died under its requests, the process lived to tell.

    `alone`: one suspect was on board by itself. `explained`: a row was convicted of it.
    """

    replica_id: str
    by_engine: bool
    alone: bool
    explained: bool = False


def suspicious(deaths: Sequence[Death]) -> bool:
    """Whether a row that was on board of these has to run alone.

    A process or node that is lost was nearly always killed from outside: that counts from the second time on.
    """
    open_deaths = [death for death in deaths if not death.explained]
    return len(open_deaths) > 1 or any(death.by_engine for death in open_deaths)


def convicts(deaths: Sequence[Death], max_losses: int) -> bool:
    """Whether the last of a row's deaths proves it guilty.

    Alone when an engine died, it did that. Alone when a replica was lost it was still rather killed from outside,
    until that happened too often.
    """
    last = deaths[-1]
    return last.alone and (last.by_engine or sum(not death.explained for death in deaths) >= max_losses)


def verdict(deaths: Sequence[Death]) -> str:
    """Why a row was convicted, for people."""
    alone = ", ".join(death.replica_id for death in deaths if death.alone)
    before = ", ".join(death.replica_id for death in deaths if not death.alone)
    what, ends = ("its engine died", "an engine") if deaths[-1].by_engine else ("it was lost", "replicas")
    also = f", and on board when that happened to {before}" if before else ""
    return f"it was alone on replica {alone} when {what}{also}: the row ends {ends}"
