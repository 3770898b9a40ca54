"""A researcher: labels without labels, an interrupted search, ads compared and calibrated."""

from __future__ import annotations

import json

from tests.journeys.kit import ROOT, Person, says
from tests.journeys.pages import check_page


def last_line(text: str) -> dict[str, object]:
    """The JSON line that ends a command's output."""
    found: dict[str, object] = json.loads(text.strip().splitlines()[-1])
    return found


def journey(person: Person) -> None:
    """On a running server."""
    search = ("--testbed", "reviews", "--batch-size", "16", "--num-seed", "4", "--no-baselines")
    with person.step("searches for labels, stops with Ctrl-C, goes on"):
        child = person.start("icm", "run", *search, "--iterations", "3000", "--out", "labels")
        child.expect("searching .* [1-9][0-9]?%")
        says(person.interrupt(child, 130), "stopped", "icm run --resume labels")
        told = person.run("icm", "run", "--resume", "labels", "--iterations", "60")
        says(told, "SIMULATED", "confidence")
        check_page(person.folder / "labels" / "report.html")
    with person.step("changes what a resumed search cannot change"):
        says(
            person.run("icm", "run", "--resume", "labels", "--testbed", "claims", code=2),
            "--testbed",
            "begun with reviews",
        )
    with person.step("compares two ads"):
        told = person.run("ctr", "compare", "--ad", "A phone", "--ad", "Cheap flights", "--population-size", "60",
                          "--out", "comparisons")  # fmt: skip
        says(told, "SIMULATED")
        (page,) = (person.folder / "comparisons").glob("*/report.html")
        check_page(page)
        line = last_line(told)
        assert line["simulated"] is True
    with person.step("calibrates, and sees the calibrated rate everywhere"):
        history = str(ROOT / "examples" / "history.csv")
        says(person.run("ctr", "calibrate", "--ads", history, "--population-size", "40"), "SIMULATED")
        told = person.run("ctr", "predict", "--ad", "A phone", "--population-size", "40", "--calibration",
                          "calibration.json", "--out", "calibrated")  # fmt: skip
        line = last_line(told)
        rate = float(str(line["ctr"]))
        assert 0 <= rate < 0.1, "the history's ads are clicked by about one in a hundred"
        says(told, f"{rate:.2%}")
    with person.step("asks for reasons"):
        told = person.run("ctr", "predict", "--ad", "A phone", "--population-size", "12", "--mode", "explain", "--out",
                          "reasons")  # fmt: skip
        says(told, "report.html")
    with person.step("gives a flag before the command"):
        says(
            person.run("ctr", "--population-size", "12", "compare", "--ad", "a", "--ad", "b", code=2),
            "after the command",
        )
