"""Writes the bundled testbeds: `python -m serve_app.workloads.icm.data.compose`.

reviews   the remarks of `clauses.py`, 132 pairs, each used at most twice: two people disagree, so exactly one liked
          it, and each ends with a verdict. Without it the default model is right about 90 of 100 at zero shots, with
          it about 98: ICM should succeed here. Key a goes to either at random, and so tells nothing.
claims    numbers that a small model does not know: atomic numbers, years, sums of three-digit numbers. Each question
          has a right and a wrong claim, in random order; contradictions are computed from the numbers.
"""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import msgspec

from serve_app.workloads.icm.data.clauses import DISLIKED, LIKED, OPENERS, SUBJECTS

FOLDER = Path(__file__).parent
# Aspects used a second time, with an opening to make texts unique.
AGAIN = (0, 2, 3, 5)
# In IUPAC's order; symbols would give some away.
ELEMENTS = {
    "scandium": 21, "vanadium": 23, "gallium": 31, "germanium": 32, "rubidium": 37, "yttrium": 39, "niobium": 41,
    "technetium": 43, "rhodium": 45, "palladium": 46, "indium": 49, "antimony": 51, "tellurium": 52, "caesium": 55,
    "praseodymium": 59, "samarium": 62, "europium": 63, "terbium": 65, "holmium": 67, "thulium": 69, "hafnium": 72,
    "rhenium": 75, "osmium": 76, "thallium": 81, "bismuth": 83, "francium": 87, "actinium": 89, "protactinium": 91,
}  # fmt: skip
YEARS = {
    "The Treaty of Tordesillas was signed in": 1494, "The Peace of Westphalia was concluded in": 1648,
    "The Royal Society was founded in": 1660, "The Battle of Lepanto was fought in": 1571,
    "The Edict of Nantes was issued in": 1598, "The Great Fire of London broke out in": 1666,
    "Uranus was discovered in": 1781, "Neptune was discovered in": 1846, "Pluto was discovered in": 1930,
    "The Suez Canal was opened in": 1869, "The Panama Canal was opened in": 1914,
    "The Trans-Siberian Railway was begun in": 1891, "The Eiffel Tower was completed in": 1889,
    "The Congress of Vienna ended in": 1815, "The Crimean War began in": 1853,
    "The Meiji Restoration took place in": 1868, "The Battle of Tsushima was fought in": 1905,
    "The Treaty of Utrecht was signed in": 1713, "The Krakatoa eruption took place in": 1883,
    "The Lisbon earthquake took place in": 1755,
}  # fmt: skip
SUMS = 22


def main() -> None:
    """Write the files."""
    for name, rows in (("reviews", reviews()), ("claims", claims())):
        for file, fields in (
            (f"{name}.jsonl", ("id", "group", "key", "text")),
            (f"{name}.gold.jsonl", ("id", "label")),
        ):
            lines = ({field: row[field] for field in fields if field in row} for row in rows)
            (FOLDER / file).write_bytes(b"".join(msgspec.json.encode(line) + b"\n" for line in lines))


def reviews(seed: int = 1) -> list[dict[str, Any]]:
    """Pairs of a positive and a negative remark."""
    rng = random.Random(seed)
    rows = []
    for subject, aspects in SUBJECTS.items():
        chosen = [(aspect, False) for aspect in range(len(aspects))] + [(aspect, True) for aspect in AGAIN]
        for number, (aspect, again) in enumerate(chosen, 1):
            keys = rng.sample(["a", "b"], 2)
            texts = [_review(rng, aspects[aspect][1 - label], (DISLIKED, LIKED)[label], again) for label in (0, 1)]
            pair = [{"key": keys[label], "text": texts[label], "label": label} for label in (0, 1)]
            rng.shuffle(pair)
            group = f"{subject}-{number}"
            rows += [{"id": f"{group}-{i}", "group": group, **remark} for i, remark in enumerate(pair, 1)]
    return rows


def _review(rng: random.Random, remark: str, moods: tuple[str, ...], again: bool) -> str:
    before = f"{rng.choice(OPENERS)} " if again else ""
    return f"{before}{remark}. {rng.choice(moods)}"


def claims(seed: int = 2) -> list[dict[str, Any]]:
    """Pairs of a right and a wrong claim."""
    rng = random.Random(seed)
    asked = [(f"The atomic number of {name} is", number, 9) for name, number in ELEMENTS.items()]
    asked += [(event, year, 40) for event, year in YEARS.items()]
    for _ in range(SUMS):
        first, second = rng.randrange(100, 900), rng.randrange(100, 900)
        asked.append((f"{first} plus {second} equals", first + second, 90))
    rows = []
    for number, (text, right, spread) in enumerate(asked, 1):
        wrong = right + rng.choice((-1, 1)) * rng.randrange(2, spread)
        pair = [(right, 1), (wrong, 0)]
        rng.shuffle(pair)
        group = f"claim-{number}"
        rows += [
            {"id": f"{group}-{i}", "group": group, "text": f"{text} {value}.", "label": label}
            for i, (value, label) in enumerate(pair, 1)
        ]
    return rows


if __name__ == "__main__":
    main()
