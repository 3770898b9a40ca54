"""A search's state and steps."""

from __future__ import annotations

import msgspec

from serve_app.workloads.icm.examples.labels import Labels


class Evaluated(msgspec.Struct, frozen=True):
    """A labelling, its leave-one-out log-probabilities (labelled examples, by index) and I(D)."""

    labels: Labels
    logprobs: tuple[tuple[float, float], ...]
    inconsistent: int


class State(msgspec.Struct, frozen=True):
    """The state after `iteration`. `recent`: which last proposals were rejected."""

    iteration: int
    current: Evaluated
    accepted: int = 0
    alpha_level: int = 0
    recent: tuple[bool, ...] = ()


class Step(msgspec.Struct, frozen=True):
    """One line of the trace: a proposal and its outcome. `changes` are [example id, label]; `utility` is U after the
    step, under its `alpha`; tokens are of its calls.
    """

    iteration: int
    example: str
    label: int
    changes: tuple[tuple[str, int], ...]
    delta: float
    temperature: float
    alpha: float
    accepted: bool
    utility: float
    predictability: float
    inconsistent: int
    labelled: int
    calls: int = 0
    prompts: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    label_mass: float | None = None

    def without_costs(self) -> Step:
        """The chain's part, unaffected by scoring ahead and resuming."""
        return msgspec.structs.replace(self, calls=0, prompts=0, prompt_tokens=0, cached_tokens=0, label_mass=None)
