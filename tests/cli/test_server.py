import json

import pytest
from typer.testing import CliRunner

from serve_app.cli import app

NOWHERE = "http://127.0.0.1:9"


def test_the_version_is_the_package_s() -> None:
    result = CliRunner().invoke(app, ["--version"])
    assert (result.exit_code, result.output) == (0, "serve-app 0.1.0\n")


@pytest.mark.parametrize("flag", ["--json", "-q"])
def test_check_says_as_json_what_failed_where_the_environment_names_the_server(flag: str) -> None:
    result = CliRunner().invoke(app, ["check", flag], env={"SERVE_APP_BASE_URL": NOWHERE})
    found = json.loads(result.stdout)
    assert result.exit_code == 1
    assert (found["ok"], found["base_url"]) == (False, NOWHERE)
    assert [step["step"] for step in found["steps"]] == ["reachable"]
    assert NOWHERE in found["steps"][0]["detail"]


def test_presets_as_json_have_their_whole_names() -> None:
    found = json.loads(CliRunner().invoke(app, ["k8s", "presets", "--json"]).stdout)
    assert found["70b-tp8"]["tensor_parallel"] == 8
