"""Gold labels cannot reach a search: what it is given has none, and no module that it is made of knows them."""

import json
from pathlib import Path

import msgspec
import pytest

from serve_app.errors import BadSettings
from serve_app.workloads import icm
from serve_app.workloads.icm.evaluation.gold import Gold
from serve_app.workloads.icm.examples.dataset import Dataset
from serve_app.workloads.icm.examples.testbeds import Row, load
from serve_app.workloads.icm.schedule import SearchSettings
from serve_app.workloads.icm.search.runs import fingerprint
from serve_app.workloads.icm.search.search import Search
from tests.house import imports
from tests.workloads.icm.models import Noise

FOLDER = Path(icm.__path__[0])
PACKAGE = "serve_app.workloads.icm."


def reached(name: str) -> set[str]:
    """Modules of this workload that a module imports, directly or not."""
    found: set[str] = set()
    waiting = {name}
    while waiting:
        found.add(module := waiting.pop())
        path = FOLDER.joinpath(*module.split(".")).with_suffix(".py")
        used = imports(path) if path.exists() else set()
        waiting |= {one.removeprefix(PACKAGE) for one in used if one.startswith(PACKAGE)} - found
    return found


@pytest.mark.parametrize(
    "module",
    [
        "search.search", "search.finding", "examples.testbeds", "search.runs", "scoring.scorers", "scoring.preflight",
        "evaluation.baselines",
    ],
)  # fmt: skip
def test_no_module_of_the_search_reaches_the_one_that_knows_gold_labels_or_made_the_data(module: str) -> None:
    found = reached(module)
    assert module in found
    assert {"evaluation.gold", "evaluation.comparison"}.isdisjoint(found)
    assert not any(name.split(".")[0] == "data" for name in found)


def test_rows_and_datasets_have_no_field_for_a_gold_label() -> None:
    names = {*Row.__struct_fields__, *Dataset.__dataclass_fields__}
    assert not {name for name in names if "label" in name or "gold" in name}


@pytest.mark.parametrize("form", ["truthfulqa", "gsm8k", "alpaca"])
def test_other_gold_labels_in_a_published_file_change_nothing_that_the_search_sees_or_does(
    tmp_path: Path, form: str
) -> None:
    traces = []
    for number, gold in enumerate((bytes([0, 1] * 8), bytes([1, 0] * 8), bytes([1, 1] + [0, 1] * 7))):
        rows = [
            {"question": f"q{i // 4}", "choice": f"answer {i}", "choice_2": f"answer {i ^ 1}", "label": label,
             "consistency_id": i // 4, "vanilla_label": label, "consistency_key": "A" if label else "B"}
            for i, label in enumerate(gold)
        ]  # fmt: skip
        path = tmp_path / f"{number}.json"
        path.write_text(json.dumps(rows))
        data = load(form, path)
        steps = list(Search(data, SearchSettings(iterations=40, seed=1), Noise(1)))
        traces.append((fingerprint(data), msgspec.json.encode(steps)))
        assert Gold.read(path).of(data) == gold
    assert traces[0] == traces[1] == traces[2]


def test_malformed_gold_rows_are_named_by_line_and_missing_ones_by_id(tmp_path: Path) -> None:
    path = tmp_path / "gold.jsonl"
    for bad, problem in (('{"id": "b"}', "label"), ('{"id": "b", "label": 2}', "label 2 is not 0 or 1"),
                         ('{"id": "a", "label": 1}', "'a' is there twice"), ("x", "line 2")):  # fmt: skip
        path.write_text('{"id": "a", "label": 1}\n' + bad)
        with pytest.raises(BadSettings, match=rf"gold.jsonl, line 2: .*{problem}" if problem != "line 2" else problem):
            Gold.read(path)
    path.write_text('{"id": "hotel-1-1", "label": 1}')
    with pytest.raises(BadSettings, match="439 example.* have no gold label, the first is 'hotel-1-2'"):
        Gold.read(path).of(load("reviews"))
