import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from serve_app.errors import BadSettings
from serve_app.workloads.icm.data import compose
from serve_app.workloads.icm.evaluation.gold import Gold
from serve_app.workloads.icm.examples.consistency import Relation
from serve_app.workloads.icm.examples.testbeds import BUNDLED, load


def write(path: Path, rows: Sequence[object]) -> Path:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


@pytest.mark.parametrize(
    ("bad", "problem"),
    [
        ('{"question": "q", "claim": ', "not a row"),
        ('["q", "c"]', "not a row"),
        ('{"question": 3, "claim": "c"}', "question"),
        ({"question": "q"}, r"column 'claim \(or choice\)' is missing"),
        ({"question": " ", "claim": "c"}, "column 'question' is missing or empty"),
        ({"id": "a", "question": "q", "claim": "c"}, "id 'a' is there twice"),
    ],
)
def test_a_malformed_row_is_named_by_file_and_line(tmp_path: Path, bad: object, problem: str) -> None:
    path = write(tmp_path / "rows.jsonl", [{"id": "a", "question": "q", "claim": "c"}, "", bad])
    with pytest.raises(BadSettings, match=rf"rows.jsonl, line 3: .*{problem}"):
        load("truthfulqa", path)


def test_claims_and_gold_labels_are_read_from_a_spreadsheet(tmp_path: Path) -> None:
    path = tmp_path / "claims.csv"
    rows = "id;question;claim;consistency_id;label\r\n1;Größe?;3, ja;7;1\r\n;;;;\r\n2;Größe?;4;7;0\r\n"
    path.write_bytes(rows.encode("cp1252"))
    data = load("truthfulqa", path)
    assert [(one.id, one.text, one.group) for one in data.examples] == [
        ("1", "Question: Größe?\nClaim: 3, ja\nI think this claim is", "7"),
        ("2", "Question: Größe?\nClaim: 4\nI think this claim is", "7"),
    ]
    assert Gold.read(path).of(data) == b"\1\0"


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"PK\x03\x04", "is a zip file or an Excel workbook"),
        (b"question;claim\nq;c\nq\n", "line 3: not a row: 1 fields, where the header has 2"),
        (b"question;claim\nq;c\nq;\n", r"line 3: column 'claim \(or choice\)' is missing"),
    ],
)
def test_a_spreadsheet_that_is_no_claims_is_named_by_file_and_line(
    tmp_path: Path, content: bytes, problem: str
) -> None:
    path = tmp_path / "claims.csv"
    path.write_bytes(content)
    with pytest.raises(BadSettings, match=rf"claims.csv.*{problem}"):
        load("truthfulqa", path)


def test_a_testbed_that_is_unknown_or_has_no_rows_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadSettings, match="--testbed 'mnli' is unknown: use one of truthfulqa"):
        load("mnli")
    with pytest.raises(BadSettings, match="--testbed gsm8k is a form for your own rows: give them by --data"):
        load("gsm8k")
    with pytest.raises(BadSettings, match="holds no rows"):
        load("text", write(tmp_path / "none.jsonl", [""]))
    with pytest.raises(BadSettings, match="No such file"):
        load("text", tmp_path / "missing.jsonl")


def test_solutions_with_the_same_final_answer_are_equivalent_and_others_contradict(tmp_path: Path) -> None:
    rows = [
        {"question": "How many?", "choice": "3 boxes of 400 make 1,200 apples", "consistency_id": 7},
        {"question": "How many?", "choice": "It is 1200.0 in all.", "consistency_id": 7},
        {"question": "How many?", "choice": "The answer is 430", "consistency_id": 7},
        {"question": "How many else?", "choice": "430", "consistency_id": 8},
    ]
    data = load("gsm8k", write(tmp_path / "g.jsonl", rows))
    assert data.relations == (
        Relation("equivalence", 0, 1), Relation("contradiction", 0, 2), Relation("contradiction", 1, 2),
    )  # fmt: skip
    assert data.examples[0].text.startswith("Question: How many?\nClaim: 3 boxes")
    assert data.examples[0].text.endswith("I think this claim is")


def test_two_responses_compared_both_ways_exclude_each_other_whatever_the_groups_are(tmp_path: Path) -> None:
    rows = [
        {"question": "q", "choice": "good", "choice_2": "bad", "consistency_id": "x"},
        {"question": "q", "choice": "bad", "choice_2": "good", "consistency_id": "y"},
        {"question": "q", "choice": "bad", "choice_2": "fair", "consistency_id": "x"},
    ]
    path = tmp_path / "a.json"
    path.write_text(json.dumps(rows))
    assert load("alpaca", path).relations == (Relation("exclusion", 0, 1),)


def test_claims_whose_relation_is_not_known_constrain_nothing_unless_keys_are_given(tmp_path: Path) -> None:
    rows = [{"question": "q", "choice": choice, "consistency_id": 1} for choice in ("yes", "no", "maybe")]
    assert load("truthfulqa", write(tmp_path / "t.jsonl", list(rows))).relations == ()
    given = [{**row, "key": key} for row, key in zip(rows, "aab", strict=True)]
    found = load("truthfulqa", write(tmp_path / "u.jsonl", list(given))).relations
    assert [relation.kind for relation in found] == ["equivalence", "contradiction", "contradiction"]


def test_a_files_own_columns_say_which_form_it_has(tmp_path: Path) -> None:
    forms: list[dict[str, str]] = [
        {"text": "t"}, {"question": "q", "claim": "c"}, {"question": "q", "choice": "a", "choice_2": "b"},
    ]  # fmt: skip
    names = [load(str(write(tmp_path / f"{i}.jsonl", [row]))).name for i, row in enumerate(forms)]
    assert names == ["text", "truthfulqa", "alpaca"]


@pytest.mark.parametrize(("name", "least"), [("reviews", 400), ("claims", 100)])
def test_the_bundled_testbeds_are_large_varied_balanced_and_true_to_their_relations(name: str, least: int) -> None:
    data = load(name)
    gold = Gold.read(BUNDLED / f"{name}.gold.jsonl").of(data)
    assert len(data) >= least
    assert len({example.text for example in data.examples}) == len(data)
    assert sum(gold) == len(data) / 2
    assert data.relations
    assert not any(relation.violated(gold) for relation in data.relations)


def test_the_bundled_files_are_what_their_script_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compose, "FOLDER", tmp_path)
    compose.main()
    written = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert written == {path.name: path.read_bytes() for path in BUNDLED.glob("*.jsonl")}


def test_neither_key_nor_place_tells_a_reviews_gold_label() -> None:
    rows = [json.loads(line) for line in (BUNDLED / "reviews.jsonl").read_text().splitlines()]
    gold = Gold.read(BUNDLED / "reviews.gold.jsonl")
    assert all("label" not in row for row in rows)
    keyed = [gold.labels[row["id"]] for row in rows if row["key"] == "a"]
    assert sum(keyed) / len(keyed) == pytest.approx(0.5, abs=0.12)
    first = [gold.labels[row["id"]] for row in rows if row["id"].endswith("-1")]
    assert sum(first) / len(first) == pytest.approx(0.5, abs=0.12)


def test_a_sample_holds_whole_groups_and_is_the_seeds() -> None:
    data = load("reviews")
    sample = data.sample(31, seed=5)
    groups = [example.group for example in sample.examples]
    assert len(sample) == 30
    assert all(groups.count(group) == 2 for group in groups)
    assert len(sample.relations) == 15
    assert sample == data.sample(31, seed=5)
    assert sample != data.sample(31, seed=6)
    with pytest.raises(BadSettings, match="--batch-size 1 is below the smallest consistency group"):
        data.sample(1, seed=5)
