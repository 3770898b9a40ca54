"""The click-through population as generator `ctr` of `serve_app.generators`, so that nobody sends or holds it."""

from __future__ import annotations

from pydantic import NonNegativeInt, PositiveInt

from serve_app.errors import BadSettings
from serve_app.workloads.ctr.asking.frames import Swap
from serve_app.workloads.ctr.asking.prompts import Mode
from serve_app.workloads.ctr.people.bank import PACKAGED, Bank
from serve_app.workloads.ctr.people.sample import Allocation
from serve_app.workloads.ctr.study import SIZE, Rows, Study


def rows(
    ad: str,
    platform: str = Study.platform,
    size: PositiveInt = SIZE,
    seed: NonNegativeInt = Study.seed,
    *,
    context: str = Study.context,
    mode: Mode = Study.mode,
    swap: Swap = Study.swap,
    bank: Bank | str = "default",
    strata: tuple[str, ...] = Study.strata,
    allocation: Allocation = Study.allocation,
    start: NonNegativeInt = 0,
) -> Rows:
    """Rows of a `Study` of a bank's people, from number `start` (from 0).

    `bank` is a packaged name or a document, as paths would be the driver's. Without strata nobody before `start` is
    made. Raises BadSettings for an invalid study.
    """
    if isinstance(bank, str) and bank not in PACKAGED:
        raise BadSettings(f"bank '{bank}' is unknown: use {', '.join(PACKAGED)}, or give the bank itself")
    study = Study(
        ad=ad, platform=platform, context=context, mode=mode, swap=swap, size=size, seed=seed, bank=bank,
        strata=strata, allocation=allocation,
    )  # fmt: skip
    return study.rows(start)
