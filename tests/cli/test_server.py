import json
import os
import subprocess
import sys

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


@pytest.mark.parametrize(
    "command",
    [
        ["ctr", "predict", "--ad", "x"],
        ["ctr", "compare", "--ad", "x", "--ad", "y"],
        ["ctr", "calibrate", "--ads", "history.csv"],
        ["icm", "run"],
        ["population", "list"],
        ["population", "status", "j"],
    ],
)
def test_where_no_server_is_a_command_says_so_before_it_imports_what_is_slow(command: list[str]) -> None:
    code = f"""
import sys
from serve_app.cli import app
from serve_app.errors import ServerUnavailable
try:
    app({command!r}, standalone_mode=False)
except ServerUnavailable as error:
    print(error)
    print(sorted({{"pyarrow", "scipy", "matplotlib", "ray", "torch", "vllm"}} & set(sys.modules)))
"""
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True,
                           env={**os.environ, "SERVE_APP_BASE_URL": NOWHERE})  # fmt: skip
    assert found.stdout.splitlines()[0].startswith(f"{NOWHERE} does not answer")
    assert found.stdout.splitlines()[1] == "[]"


def test_presets_as_json_have_their_whole_names() -> None:
    found = json.loads(CliRunner().invoke(app, ["k8s", "presets", "--json"]).stdout)
    assert found["70b-tp8"]["tensor_parallel"] == 8
