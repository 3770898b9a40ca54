"""What is asked: prompts, frames, platforms, modes."""

from pathlib import Path
from typing import Any

import pytest

from serve_app.errors import BadSettings
from serve_app.workloads.ctr.asking.explain import read_explanation
from serve_app.workloads.ctr.asking.frames import SWAPS, labels
from serve_app.workloads.ctr.asking.prompts import PLATFORMS, WORKLOAD, Question, read_platforms, render_rows
from serve_app.workloads.ctr.people.profiles import Profile, generate_profiles

ANN = Profile("ann", {}, "Female, 34")


def test_prompts_share_all_but_the_profile() -> None:
    rows = render_rows(generate_profiles(20), "A new phone", "tiktok")
    assert len({row.messages[0]["content"] for row in rows}) == 1
    assert "A new phone" in rows[0].messages[0]["content"]
    assert len({row.messages[1]["content"] for row in rows}) == 20


def test_version_1_of_the_prompt_is_word_for_word_what_it_was() -> None:
    assert WORKLOAD == "ctr/v2"
    (row,) = Question("A new phone", "tiktok").rows(ANN)
    assert row.messages[0]["content"] == (
        "You estimate whether a person clicks on an online ad. Most people ignore most ads; people click when an ad "
        "fits their age, work, income, debts, family and health.\nPlatform: TikTok: the ad appears as a short "
        "full-screen video between other short videos.\nAd: A new phone\nYou are given one person's profile. Answer "
        "with one word, Yes or No: does this person click on the ad?"
    )
    assert row.messages[1]["content"] == "Female, 34"


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({"ad": "  "}, "--ad is empty"),
        ({"platform": "radio"}, "'radio' is unknown: use one of facebook, tiktok, amazon, or say by --ad-platform-co"),
        ({"mode": "guess"}, "--mode 'guess' is unknown: use one of score, explain"),
        ({"swap": "all"}, "--swap 'all' is unknown: use one of none, order, words"),
        ({"mode": "explain", "swap": "order"}, "--swap order: labels are swapped in score mode"),
    ],
)
def test_a_wrong_question_names_the_flag(fields: dict[str, Any], problem: str) -> None:
    with pytest.raises(BadSettings, match=problem):
        Question(**{"ad": "x", **fields})


def test_swapped_rows_of_a_person_differ_in_the_instruction_only_and_have_ids_of_their_own() -> None:
    rows = Question("x", swap="words").rows(ANN)
    assert [row.custom_id for row in rows] == ["ann", "ann#no-yes", "ann#a-clicks", "ann#b-clicks"]
    systems = [row.messages[0]["content"] for row in rows]
    assert len({system.partition("Answer with one")[0] for system in systems}) == 1
    assert len(set(systems)) == 4
    assert len({row.messages[1]["content"] for row in rows}) == 1


def test_in_every_swap_each_wording_has_both_orders_and_each_frame_names_its_labels() -> None:
    for swap, frames in SWAPS.items():
        assert frames[0] == SWAPS["none"][0]
        for wording in {frame.wording for frame in frames}:
            assert len([frame for frame in frames if frame.wording == wording]) == (1 if swap == "none" else 2)
        for frame in frames:
            assert frame.click in frame.instruction
            assert frame.ignore in frame.instruction
    assert labels(SWAPS["words"]) == ("Yes", "No", "A", "B")


def test_a_row_that_makes_nobody_is_asked_nothing() -> None:
    rows = Question("x", swap="order").rows(Profile("bob", {}, "", error="line 3: age: is empty"))
    assert [(row.custom_id, row.error, row.messages) for row in rows] == [
        ("bob", "line 3: age: is empty", ()),
        ("bob#no-yes", "line 3: age: is empty", ()),
    ]


def test_a_users_platform_is_in_the_prompt_in_its_words(tmp_path: Path) -> None:
    (tmp_path / "p.yaml").write_text("radio: Between two songs.\n")
    context = read_platforms(tmp_path / "p.yaml")["radio"]
    (row,) = Question("x", "radio", context).rows(ANN)
    assert "\nPlatform: Between two songs.\nAd: x\n" in row.messages[0]["content"]
    assert not any(text in row.messages[0]["content"] for text in PLATFORMS.values())


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("- a", "give a mapping"),
        ("{}", "give a mapping"),
        ("radio: ''", "radio: describe"),
        ("radio: 3", "radio: desc"),
    ],
)
def test_platforms_that_say_nothing_are_refused(tmp_path: Path, text: str, problem: str) -> None:
    (tmp_path / "p.yaml").write_text(text)
    with pytest.raises(BadSettings, match=problem):
        read_platforms(tmp_path / "p.yaml")


def test_modes_are_other_workloads_with_their_own_way_to_answer() -> None:
    assert Question("x", swap="order").job() == {"workload": "ctr/v2", "labels": ["Yes", "No"]}
    explain = Question("x", mode="explain").job()
    assert explain["workload"] == "ctr-explain/v2"
    assert list(explain["structured"]["json"]["properties"]) == ["reasoning", "will_click", "confidence"]


def test_a_provider_is_not_asked_for_labels_that_it_would_not_show() -> None:
    assert Question("x", swap="order").job(external=True)["labels"] == ["Yes", "No"]
    with pytest.raises(BadSettings, match="--swap words: .* use --swap order"):
        Question("x", swap="words").job(external=True)


@pytest.mark.parametrize(
    ("text", "p_click"),
    [
        ('{"reasoning": "likes it", "will_click": true, "confidence": 90}', 0.9),
        ('{"reasoning": "a\ttab", "will_click": false, "confidence": 90}', 0.1),
        ('{"reasoning": "", "will_click": false, "confidence": 50}', 0.5),
    ],
)
def test_an_explanation_states_a_probability(text: str, p_click: float) -> None:
    assert read_explanation(text).p_click == pytest.approx(p_click)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "Yes",
        '{"reasoning": "cut o',
        "[]",
        '{"will_click": true, "confidence": 90}',
        '{"reasoning": "x", "will_click": true, "confidence": 40}',
        '{"reasoning": "x", "will_click": "yes", "confidence": 60}',
    ],
)
def test_what_is_no_explanation_raises(text: str) -> None:
    with pytest.raises(ValueError, match="not JSON of the schema"):
        read_explanation(text)
