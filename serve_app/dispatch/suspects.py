"""Finds rows that ended a replica.

One death does not tell which of hundreds of rows caused it, so suspects run again alone. One that was alone when
another replica died is the culprit, which clears the others. Requests of other HTTP clients are not seen.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from serve_app.errors import EngineFailed, ReplicaLost

# The replica failed, not the chunk.
DEATHS = (EngineFailed, ReplicaLost)


@dataclass(slots=True, eq=False)
class Death:
    """One replica's end. `by_engine`: only its engine died. `alone`: a single suspect ran. `explained`: its culprit is
    known.
    """

    replica_id: str
    by_engine: bool
    alone: bool
    explained: bool = False


def is_suspect(deaths: Sequence[Death]) -> bool:
    """Whether a row with these deaths must run alone. A lost process or node was usually killed from outside, so it
    counts from the second time.
    """
    open_deaths = [death for death in deaths if not death.explained]
    return len(open_deaths) > 1 or any(death.by_engine for death in open_deaths)


def is_culprit(deaths: Sequence[Death], max_losses: int) -> bool:
    """Whether the row caused the last death: alone when an engine died, or alone in `max_losses` losses."""
    if not deaths:
        return False
    last = deaths[-1]
    return last.alone and (last.by_engine or sum(not death.explained for death in deaths) >= max_losses)


def culprit_message(deaths: Sequence[Death]) -> str:
    alone = ", ".join(death.replica_id for death in deaths if death.alone)
    before = ", ".join(death.replica_id for death in deaths if not death.alone)
    what, ends = ("its engine died", "an engine") if deaths[-1].by_engine else ("it was lost", "replicas")
    also = f", and on board when that happened to {before}" if before else ""
    return f"it was alone on replica {alone} when {what}{also}: the row ends {ends}"
