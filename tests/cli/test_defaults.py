"""Defaults of options that are a model's too: the command line has its own, as it answers before models are loaded."""

from dataclasses import fields
from typing import Any

from typer.main import get_command

from serve_app.cli import app
from serve_app.workloads.ctr.study import SIZE, Study
from serve_app.workloads.icm.labelling import Labelling
from serve_app.workloads.icm.schedule import SearchSettings


def defaults(*path: str) -> dict[str, Any]:
    """Of a command's options, by the names of its function's parameters."""
    command: Any = get_command(app)
    for name in path:
        command = command.commands[name]
    return {option.name: option.default for option in command.params if option.param_type_name == "option"}


def test_options_of_icm_have_the_defaults_of_a_search() -> None:
    options = defaults("icm", "run")
    settings = {name: field.default for name, field in SearchSettings.model_fields.items() if name in options}
    assert len(settings) >= 6
    assert {name: options[name] for name in settings} == settings


def test_options_of_ctr_have_the_defaults_of_a_study() -> None:
    names = {"ad_platform": "platform", "ad_platform_context": "context"}
    options = {names.get(name, name): value for name, value in defaults("ctr", "predict").items()}
    study = {field.name: field.default for field in fields(Study)}
    same = ("platform", "context", "mode", "swap", "seed", "allocation")
    assert {name: options[name] for name in same} == {name: study[name] for name in same}


def test_every_command_on_a_population_has_as_many_people_of_the_same_seed() -> None:
    for path in (("demo",), ("ctr", "compare"), ("ctr", "calibrate")):
        options = defaults(*path)
        assert (options["population_size"], options["seed"]) == (SIZE, Study.seed), path


def test_options_of_icm_have_the_defaults_of_a_labelling() -> None:
    options = defaults("icm", "run")
    same = ("testbed", "words", "batch_size", "baselines", "shots", "baseline_seeds")
    labelling = {field.name: field.default for field in fields(Labelling)}
    assert {name: options[name] for name in same} == {name: labelling[name] for name in same}
