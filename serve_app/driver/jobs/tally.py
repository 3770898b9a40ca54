"""Counts of committed rows, of a part or summed over parts."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import msgspec

from serve_app.schema import Outcome


class Tally(msgspec.Struct):
    """Counts over all runs of a part; `now_s` and `now_by_replica` are the present run's."""

    ok: int = 0
    invalid: int = 0
    failed: int = 0
    reused: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    rows_by_replica: dict[str, int] = {}
    model: str = ""
    tensor_parallel_size: int = 0
    simulated: bool = False
    run_s: float = 0.0  # of all runs
    now_s: float = 0.0  # of the present one
    now_by_replica: dict[str, int] = {}

    @property
    def done(self) -> int:
        """Committed rows."""
        return self.ok + self.invalid + self.failed

    def copy(self) -> Tally:
        """An independent copy."""
        return msgspec.convert(msgspec.to_builtins(self), Tally)

    def count(self, outcomes: Sequence[Outcome]) -> None:
        """Add committed outcomes."""
        for outcome in outcomes:
            if outcome.status == "ok":
                self.ok += 1
            elif outcome.status == "invalid":
                self.invalid += 1
            else:
                self.failed += 1
            if outcome.reused_from is not None:  # its tokens were another job's
                self.reused += 1
                continue
            self.prompt_tokens += outcome.prompt_tokens
            self.cached_tokens += outcome.cached_tokens
            self.completion_tokens += outcome.completion_tokens
            if replica := outcome.replica:
                self.rows_by_replica[replica] = self.rows_by_replica.get(replica, 0) + 1
                self.now_by_replica[replica] = self.now_by_replica.get(replica, 0) + 1


def total(tallies: Iterable[Tally]) -> Tally:
    """The sum of parts that run side by side: rows and tokens add up, times do not."""
    whole = Tally()
    for part in tallies:
        for name in ("ok", "invalid", "failed", "reused", "prompt_tokens", "cached_tokens", "completion_tokens"):
            setattr(whole, name, getattr(whole, name) + getattr(part, name))
        for name in ("rows_by_replica", "now_by_replica"):
            rows = getattr(whole, name)
            for replica, count in getattr(part, name).items():
                rows[replica] = rows.get(replica, 0) + count
        whole.model = part.model or whole.model
        whole.simulated = part.simulated or whole.simulated
        whole.tensor_parallel_size = part.tensor_parallel_size or whole.tensor_parallel_size
        whole.run_s, whole.now_s = max(whole.run_s, part.run_s), max(whole.now_s, part.now_s)
    return whole
