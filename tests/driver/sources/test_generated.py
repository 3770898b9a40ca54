"""Generators."""

from collections.abc import Iterator
from importlib.metadata import EntryPoint, EntryPoints
from typing import Any

import pytest

from serve_app.driver.sources import generated as generators
from serve_app.driver.sources.source import Source, open_source
from serve_app.errors import BadSettings
from serve_app.schema import Row
from serve_app.spec import Generator, JobSpec
from serve_app.workloads.ctr.asking.prompts import render_rows
from serve_app.workloads.ctr.people.profiles import BLOCK, generate_profiles

CTR = {"ad": "A new phone", "platform": "tiktok", "size": 2 * BLOCK + 5, "seed": 7}


def generated(name: str, arguments: dict[str, Any]) -> Source:
    return open_source(JobSpec(generator=Generator(name=name, arguments=arguments)), folder_url="unused")


def test_the_installed_click_through_generator_gives_the_people_of_its_seed_from_any_row_on() -> None:
    source = generated("ctr", CTR)
    expected = render_rows(generate_profiles(2 * BLOCK + 5, 7), "A new phone", "tiktok")
    assert list(source.rows()) == expected
    for start, stop in [(0, 1), (BLOCK - 1, BLOCK + 1), (BLOCK, None), (2 * BLOCK + 4, None), (9999, None), (5, 3)]:
        assert list(source.rows(start, stop)) == expected[start:stop]
    assert source.count() == len(expected)
    assert list(source.ids()) == [row.custom_id for row in expected]


def test_a_generator_makes_no_more_rows_than_are_asked_for() -> None:
    source = generated("ctr", {**CTR, "size": 10**12})
    assert source.count() == 10**12
    assert [row.custom_id for row in source.rows(10**10, 10**10 + 1)] == ["profile-10000000000"]


@pytest.mark.parametrize(
    ("name", "changed", "problem"),
    [
        ("crt", {}, r"^generator.name: 'crt' is not installed here; did you mean 'ctr'\?; these are: .*ctr"),
        ("ctr", {"size": 0}, "^generator.arguments: size: .*greater than 0"),
        ("ctr", {"size": "many"}, "^generator.arguments: size: .*integer"),
        ("ctr", {"sise": 3}, "^generator.arguments: sise: Unexpected keyword"),
        ("ctr", {"start": 3}, "^generator.arguments: 'start'"),
        ("ctr", {"platform": "radio"}, "^generator.arguments: .*'radio' is unknown"),
    ],
)
def test_a_generator_that_refuses_is_refused_at_once(name: str, changed: dict[str, Any], problem: str) -> None:
    with pytest.raises(BadSettings, match=problem):
        generated(name, {**CTR, **changed})


def plain(size: int) -> Iterator[Row]:
    return (Row(str(i), prompt="x") for i in range(size))


def test_rows_before_the_start_of_a_plain_generator_are_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    points = EntryPoints(
        [
            EntryPoint("plain", f"{__name__}:plain", generators.GENERATORS),
            EntryPoint("gone", "no.such:x", generators.GENERATORS),
        ]
    )
    monkeypatch.setattr(generators, "entry_points", lambda group: points.select(group=group))
    source = generated("plain", {"size": 10})
    assert [row.custom_id for row in source.rows(7, 9)] == ["7", "8"]
    assert source.count() == 10
    with pytest.raises(BadSettings, match="^generator.name: 'gone' cannot be loaded: No module"):
        generated("gone", {})
