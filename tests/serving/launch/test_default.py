"""Any folder can serve the config file that comes with the package."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from serve_app import extras
from serve_app.errors import BadSettings, StoreError
from serve_app.serving.launch.config import ServeConfig
from serve_app.serving.launch.default import find_config, packaged_config, write_config

ROOT = Path(__file__).parents[3]


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "COLUMNS": "300", "PYTHONPATH": str(ROOT)}
    return subprocess.run([sys.executable, "-m", *arguments], capture_output=True, text=True, cwd=folder,
                          env=environment, check=False)  # fmt: skip


def test_the_packages_file_is_the_repositorys() -> None:
    assert packaged_config().read_bytes() == (ROOT / "config.yaml").read_bytes()


def test_the_packages_file_is_installed_with_it() -> None:
    package_data = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]
    assert packaged_config().name in package_data["serve_app"]


def test_a_file_that_is_given_or_here_goes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert find_config(Path("other.yaml")) == Path("other.yaml")
    assert find_config(None) == packaged_config()
    Path("config.yaml").write_text("")
    assert find_config(None) == Path("config.yaml")


def test_its_folders_are_below_the_present_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    ServeConfig.load(packaged_config()).check(port=False)
    assert [path.name for path in tmp_path.iterdir()] == ["runs"]


def test_init_writes_the_file_and_never_over_another(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    write_config(path)
    assert path.read_bytes() == packaged_config().read_bytes()
    path.write_text("mine")
    with pytest.raises(BadSettings, match=r"mine\.yaml is there already: --force"):
        write_config(path)
    assert path.read_text() == "mine"
    write_config(path, force=True)
    assert path.read_bytes() == packaged_config().read_bytes()
    with pytest.raises(StoreError, match="cannot be written"):
        write_config(tmp_path / "no" / "folder.yaml")


@pytest.mark.parametrize("module", ["serve_app", "serve_app.cli"])
def test_the_command_is_a_module_too_and_says_which_file_it_takes(module: str, tmp_path: Path) -> None:
    done = run(tmp_path, module, "validate")
    assert done.returncode == 0, done.stderr
    assert f"no config.yaml here: taking {packaged_config()}" in done.stderr
    assert "2 replica(s)" in done.stdout
    assert run(tmp_path, module, "init").returncode == 0
    done = run(tmp_path, module, "validate")
    assert "no config.yaml here" not in done.stderr
    assert "config.yaml: 2 replica(s)" in done.stdout


@pytest.mark.parametrize("extra", extras.PACKAGES)
def test_a_package_that_is_missing_is_named_with_its_extra(extra: str, monkeypatch: pytest.MonkeyPatch) -> None:
    extras.require(extra)
    monkeypatch.setitem(sys.modules, extras.PACKAGES[extra], None)
    with pytest.raises(BadSettings, match=rf"pip install 'serve-app\[{extra}\]'"):
        extras.require(extra)


def test_the_extras_bring_their_packages_and_nothing_else_needs_them() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for extra, package in extras.PACKAGES.items():
        assert project["optional-dependencies"][extra][0].startswith(package)
        assert not any(one.startswith(package) for one in project["dependencies"])


def test_without_matplotlib_and_openai_the_command_line_works_and_says_what_to_install(tmp_path: Path) -> None:
    (tmp_path / "without.py").write_text(
        "import sys\nsys.modules['matplotlib'] = sys.modules['openai'] = None\n"
        "from serve_app.cli import main\nsys.argv[0] = 'serve-app'\nmain()\n"
    )
    assert run(tmp_path, "without", "validate").returncode == 0
    for command, extra in ((["demo"], "plots"), (["icm"], "plots"), (["check"], "openai")):
        done = run(tmp_path, "without", *command)
        assert done.returncode == 2
        assert f"pip install 'serve-app[{extra}]'" in done.stderr
        assert "Traceback" not in done.stderr
