"""Settings of several models, and the example."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from serve_app.serving.requests.wanted import read_wanted
from serve_app.settings import ModelsSettings


@pytest.mark.parametrize(
    ("applications", "told"),
    [
        ([], "at least 1 item"),
        ([{"name": "a"}, {"name": "a"}], "applications.name: a is there twice"),
        ([{"name": "a", "models": ["m"]}, {"name": "b", "models": ["m"]}], "applications.models: m is there twice"),
        ([{"name": "a", "model": "m"}], "Extra inputs"),
    ],
)
def test_settings_that_cannot_work_are_refused_by_field(applications: list[dict[str, Any]], told: str) -> None:
    with pytest.raises(ValidationError, match=told):
        ModelsSettings.model_validate({"applications": applications})


def test_the_example_names_applications_that_are_there_and_models_that_they_serve() -> None:
    document = yaml.safe_load((Path(__file__).parents[3] / "config.two-models.yaml").read_text())
    applications = {application["name"]: application for application in document["applications"]}
    assert applications["models"]["route_prefix"] == "/"
    for application in ModelsSettings.model_validate(applications["models"]["args"]).applications:
        named = applications[application.name]
        assert named["import_path"] == "serve_app.serving.apps:replicas"
        assert application.models == (named["args"]["engine"]["served_model_name"],)


def test_only_two_fields_of_a_body_are_read() -> None:
    wanted = read_wanted(b'{"messages": [{"model": "inner"}], "model": "outer", "prompt_cache_key": "k"}')
    assert (wanted.model, wanted.prompt_cache_key) == ("outer", "k")
