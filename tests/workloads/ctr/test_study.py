"""Studies, with a fake client behind which rows go through the driver's own reading."""

import json
import math
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv as pa_csv
import pytest

from serve_app.driver.sources.source import open_source
from serve_app.errors import BadSettings
from serve_app.spec import Generator, JobSpec
from serve_app.workloads.ctr.people.bank import load_bank
from serve_app.workloads.ctr.people.profile_file import ProfileFile
from serve_app.workloads.ctr.people.profiles import BLOCK, generate_profiles
from serve_app.workloads.ctr.report.study_report import StudyReport
from serve_app.workloads.ctr.statistics.levels import attributes_of
from serve_app.workloads.ctr.study import Study
from tests.workloads.ctr.fakes import FakeClient, scored

OWN_BANK = {"name": "own", "version": 3, "attributes": {"pet": {"kind": "uniform", "values": ["cat", "dog"]}}}


def model(system: str, user: str) -> dict[str, Any]:
    """Women click more, and what is named first is liked."""
    clicks_first = "Yes or No" in system or "A: this person clicks" in system
    odds = (0.5 if "Female" in user else -1.5) + (0.4 if clicks_first else -0.4)
    words = ("Yes", "No") if "one word" in system else ("A", "B") if clicks_first else ("B", "A")
    value = scored(odds, *words)
    return {**value, "logprobs": dict.fromkeys(("Yes", "No", "A", "B"), -9.0) | value["logprobs"]}


def test_the_five_lines_of_the_docstring() -> None:
    study = Study(ad="New smartphone launch", platform="tiktok", size=100, swap="order")
    client = FakeClient(model)
    result = study.run(client)
    assert len(client.asked) == 200
    assert client.spec.generator is not None
    assert client.spec.labels == ("Yes", "No")
    women = sum(person.attributes["gender"] == "Female" for person in study.people)
    expected = women / (1 + math.exp(-0.5)) + (100 - women) / (1 + math.exp(1.5))
    assert result.rates.expected_clicks == pytest.approx(expected)
    assert result.label_bias is not None
    assert result.label_bias.position.offset == pytest.approx(0.8)
    assert result.table.num_rows == 100


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"bank": "rich", "size": 30},
        {"bank": OWN_BANK, "swap": "order"},
        {"swap": "words", "size": 7},
        {"mode": "explain", "platform": "radio", "context": "Between two songs."},
        {"strata": ("gender", "age:30,50"), "allocation": "equal", "size": 60},
    ],
)
def test_the_driver_draws_the_same_rows_from_any_row_on(fields: dict[str, Any]) -> None:
    study = Study(ad="A new phone", **{"size": 50, **fields})
    arguments = json.loads(json.dumps(study.arguments))
    source = open_source(JobSpec(generator=Generator(name="ctr", arguments=arguments)), folder_url="unused")
    expected = [row for person in study.people for row in study.question.rows(person)]
    assert list(source.rows()) == expected
    assert source.count() == len(expected) == len(study.rows())
    for start in (0, 1, len(expected) // 2 + 1, len(expected) - 1, len(expected) + 3):
        assert list(source.rows(start)) == expected[start:]


def test_rows_of_a_seed_are_made_from_the_start_that_is_asked_for() -> None:
    study = Study(ad="x", size=10**12, swap="words")
    row = next(iter(study.rows(4 * 10**10 + 2)))
    assert row.custom_id == "profile-10000000000#a-clicks"
    assert len(study.rows()) == 4 * 10**12


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ({"bank": "/etc/bank.yaml"}, "bank '/etc/bank.yaml' is unknown: use default, rich, or give the bank itself"),
        ({"bank": {**OWN_BANK, "version": 0}}, "generator.arguments: .*version: .*greater than or equal to 1"),
        ({"swap": "all"}, "generator.arguments: swap: "),
        ({"strata": ["pet"]}, "generator.arguments: --stratify: 'pet' is no attribute"),
    ],
)
def test_a_generator_refuses_what_a_study_refuses_and_paths(arguments: dict[str, Any], problem: str) -> None:
    with pytest.raises(BadSettings, match=problem):
        open_source(JobSpec(generator=Generator(name="ctr", arguments={"ad": "x", **arguments})), folder_url="unused")


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({"size": 0}, "--population-size must be at least 1"),
        ({"size": 10**400}, "--population-size must be at most 1,000,000,000,000"),
        ({"size": 10**8, "strata": ("gender",)}, "--population-size must be at most 100,000 with --stratify"),
        ({"seed": -1}, "--seed must be at least 0"),
        ({"allocation": "fair"}, "--allocation 'fair' is unknown"),
        ({"strata": ("age:x",)}, "--stratify age:x"),
        ({"bank": "nobody"}, "bank 'nobody' is unknown"),
        ({"ad": ""}, "--ad is empty"),
    ],
)
def test_a_wrong_study_names_the_flag(fields: dict[str, Any], problem: str) -> None:
    with pytest.raises(BadSettings, match=problem):
        Study(**{"ad": "x", **fields})


def test_a_banks_attributes_are_the_tables_columns_in_its_order() -> None:
    for bank, size in (("default", 5), ("rich", BLOCK + 5)):
        result = Study(ad="x", bank=bank, size=size).run(FakeClient(model))
        assert attributes_of(result.table) == list(load_bank(bank).shown)
        assert result.table.column("age").type == pa.int64()
        assert result.table.column("is_married").type == pa.bool_()
        assert result.table.column("id").to_pylist() == [person.id for person in generate_profiles(size, 42, bank)]


def test_health_is_no_segment_of_the_default_banks_report_and_is_one_of_the_rich_ones() -> None:
    def segmented(bank: str) -> set[str]:
        study = Study(ad="x", bank=bank, size=60)
        page = StudyReport(study, study.run(FakeClient(model))).page()
        return {row[0] for section in page.sections if section.title == "By segment" and section.table
                for row in section.table.rows}  # fmt: skip

    assert "gender" in segmented("default")
    assert not {"health status", "illness"} & segmented("default")
    assert {"health status", "illness"} <= segmented("rich")


PEOPLE = "who,Sex,Age,wt\na,Female,34,3\nb,Male,none,1\nc,Male,51,1\n"


@pytest.fixture
def people(tmp_path: Path) -> ProfileFile:
    path = tmp_path / "people.csv"
    path.write_text(PEOPLE)
    return ProfileFile(path, {"gender": "Sex", "age": "Age"}, id_column="who", weight_column="wt")


def test_a_bad_row_of_a_users_file_is_an_invalid_row_of_the_job_and_of_the_table(people: ProfileFile) -> None:
    client = FakeClient(model)
    result = Study(ad="x", profiles=people, swap="order").run(client)
    assert len(client.asked) == 6
    rows = {row["id"]: row for row in result.table.to_pylist()}
    assert (rows["b"]["status"], rows["b"]["error"]) == ("invalid", "line 3: Age: 'none' is not a number")
    assert rows["b"]["p_click"] is None
    assert (rows["a"]["status"], rows["a"]["gender"], rows["a"]["age"]) == ("ok", "Female", 34)
    assert rows["a"]["prompt_tokens"] == 200
    assert (rows["a"]["weight"], rows["c"]["weight"]) == (1.5, 0.5)
    assert result.population_ctr is not None
    assert result.population_ctr.mean == pytest.approx((3 * rows["a"]["p_click"] + rows["c"]["p_click"]) / 4)
    assert result.rates.ctr == pytest.approx((rows["a"]["p_click"] + rows["c"]["p_click"]) / 2)


def test_a_part_of_a_users_people_keeps_the_bad_rows_listed(people: ProfileFile) -> None:
    study = Study(ad="x", profiles=people, size=1)
    assert [person.id for person in study.people if person.error] == ["b"]
    assert len([person for person in study.people if person.error is None]) == 1


@pytest.mark.parametrize(
    "fields", [{"size": 5, "bank": OWN_BANK}, {"strata": ("gender",), "size": 9}, {"swap": "words"}]
)
def test_a_study_comes_back_from_its_jobs_metadata(fields: dict[str, Any]) -> None:
    study = Study(ad="x", **fields)
    back = Study.from_metadata(json.loads(json.dumps(study.metadata)))
    assert (back.question, back.people) == (study.question, study.people)


def test_a_study_of_a_file_comes_back_unless_the_file_has_changed(people: ProfileFile) -> None:
    study = Study(ad="x", profiles=people, size=2)
    said = json.loads(json.dumps(study.metadata))
    assert Study.from_metadata(said).people == study.people
    people.path.write_text(PEOPLE + "d,Male,20,1\n")
    with pytest.raises(BadSettings, match="people.csv has changed since the job was submitted"):
        Study.from_metadata(said)
    people.path.unlink()
    with pytest.raises(BadSettings, match="No such file"):
        Study.from_metadata(said)


def test_a_job_of_an_older_version_can_be_read() -> None:
    assert len(Study.from_metadata({"ad": "x", "platform": "tiktok", "size": 3, "seed": 7}).people) == 3


def test_explanations_that_cannot_be_read_are_invalid_and_the_others_have_reasons() -> None:
    texts = iter(['{"reasoning": "fits", "will_click": true, "confidence": 80}', '{"reasoning": "fi'])
    client = FakeClient(lambda system, user: {"text": next(texts), "finish_reason": "length"})
    result = Study(ad="x", mode="explain", size=2).run(client)
    assert client.spec.structured is not None
    good, bad = result.table.to_pylist()
    assert (good["status"], good["p_click"], good["reasoning"], good["label_mass"]) == ("ok", 0.8, "fits", None)
    assert (bad["status"], bad["p_click"], bad["reasoning"]) == ("invalid", None, None)
    assert "not JSON of the schema" in bad["error"]
    assert "it ended by 'length'" in bad["error"]


def test_results_of_free_attributes_can_be_written_as_csv(tmp_path: Path) -> None:
    result = Study(ad="x", bank=OWN_BANK, size=4, swap="words").run(FakeClient(model))
    pa_csv.write_csv(result.table, tmp_path / "r.csv")
    assert pa_csv.read_csv(tmp_path / "r.csv")["pet"].to_pylist() == result.table["pet"].to_pylist()
