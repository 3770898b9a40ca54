"""Joins the same people's rows under several ads by id, so that personal effects cancel."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from serve_app.errors import BadSettings
from serve_app.workloads.ctr.people.columns import WEIGHT
from serve_app.workloads.ctr.statistics.estimate import Floats, column, weights_of
from serve_app.workloads.ctr.statistics.levels import attributes_of


@dataclass(frozen=True, slots=True)
class PairedRows:
    """People answered under every ad: `chances` (rows, ads) and attributes in the same order. `dropped` people lack an
    answer and are left out of all ads.
    """

    ads: tuple[str, ...]
    chances: Floats
    people: pa.Table
    dropped: int

    @property
    def weights(self) -> Floats | None:
        """Sampling weights, shape (rows,), if any."""
        return weights_of(self.people)

    def differences(self, first: int, second: int) -> Floats:
        """Per person, the second ad's probability minus the first's."""
        return np.asarray(self.chances[:, second] - self.chances[:, first])


def pair_rows(results: Mapping[str, pa.Table], *, value: str = "p_click") -> PairedRows:
    """Join results by ad name on `id`, in the first ad's order. Raises BadSettings for fewer than two ads, repeated
    ids, or no common person: then populations differ.
    """
    if len(results) < 2:
        raise BadSettings(f"{len(results)} ad(s): a comparison needs at least two")
    positions = {ad: _positions(ad, table) for ad, table in results.items()}
    values = {ad: column(table, value) for ad, table in results.items()}
    everyone: dict[str, None] = dict.fromkeys(person for by_id in positions.values() for person in by_id)
    rows = [
        place
        for person in everyone
        if (place := [by_id.get(person, -1) for by_id in positions.values()])
        and all(at >= 0 and not np.isnan(values[ad][at]) for ad, at in zip(results, place, strict=True))
    ]
    if not rows:
        raise BadSettings("no person was answered under every ad: compare runs of the same population and seed")
    places = np.array(rows)
    chances = np.stack([values[ad][places[:, i]] for i, ad in enumerate(results)], axis=1)
    first = next(iter(results.values()))
    kept = [name for name in first.column_names if name in ("id", WEIGHT, *attributes_of(first))]
    return PairedRows(tuple(results), chances, first.select(kept).take(places[:, 0]), len(everyone) - len(rows))


def _positions(ad: str, table: pa.Table) -> dict[str, int]:
    ids = [str(person) for person in table["id"].to_pylist()]
    positions = {person: row for row, person in enumerate(ids)}
    if len(positions) < len(ids):
        twice = next(person for row, person in enumerate(ids) if positions[person] != row)
        raise BadSettings(f"the results of ad '{ad}' have the id '{twice}' twice")
    return positions
