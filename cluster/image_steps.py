"""Runs the Dockerfile's CPU target without Docker: `sudo python cluster/image_steps.py`.

Each instruction is carried out in a copy-on-write view of this machine's root (overlayfs, in a mount namespace of its
own), which is thrown away afterwards, and what CMD says last, as the image's user. What differs from the image: the
base is this machine (Debian, and its python of the image's version) and not python:slim.

Asks for root, overlayfs, a python of the image's version and the package dockerfile-parse.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from dockerfile_parse import DockerfileParser

ROOT = Path(__file__).parents[1]
INSIDE = "SERVE_APP_IMAGE_STEPS"
TARGET = "cpu"
# Of the environment that a builder has, too.
KEPT = re.compile(r"(?i).*proxy|PIP_.*|SSL_.*|REQUESTS_.*|LANG")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", default="", help="another version than the image's, 3.11 say")
    python = parser.parse_args().python
    if folder := os.environ.get(INSIDE):
        Image(Path(folder), python).build(DockerfileParser(str(ROOT / "cluster" / "Dockerfile")).structure)
        return
    # The mounts end with the namespace, and so before the folder is removed.
    with tempfile.TemporaryDirectory(dir="/var/tmp", prefix="image-steps-") as folder:
        again = ["unshare", "--mount", sys.executable, *sys.argv]
        code = subprocess.run(again, env={**os.environ, INSIDE: folder}, check=False).returncode
    sys.exit(code)


class Image:
    """The state that instructions change."""

    def __init__(self, folder: Path, python: str) -> None:
        for name in ("upper", "work", "root"):
            (folder / name).mkdir()
        self._python, self._root = python, folder / "root"
        layers = f"lowerdir=/,upperdir={folder / 'upper'},workdir={folder / 'work'}"
        subprocess.run(["mount", "-t", "overlay", "overlay", "-o", layers, str(self._root)], check=True)
        for name in ("proc", "dev"):
            subprocess.run(["mount", "--rbind", f"/{name}", str(self._root / name)], check=True)
        for name in ("passwd", "group"):  # a base image has no users of its own
            file = self._inside(f"/etc/{name}")
            lines = file.read_text().splitlines(keepends=True)
            file.write_text("".join(line for line in lines if not 1000 <= int(line.split(":")[2]) < 60000))
        self._shell = ["/bin/sh", "-c"]
        self._environment = {name: value for name, value in os.environ.items() if KEPT.fullmatch(name)}
        self._workdir, self._user = Path("/"), "0"

    def build(self, structure: list[dict[str, Any]]) -> None:
        """Carry out the target's stage and those that it stands on, in the file's order."""
        wanted = stages(structure)
        stage = None
        for step in structure:
            name, value = step["instruction"], step["value"]
            if name == "FROM":
                stage = value.split()[-1]
            elif name == "ARG" and stage is None:
                self._take_python(self._python or value.partition("=")[2])
            elif stage in wanted and name != "COMMENT":
                print(f"{name} {value}"[:160], flush=True)
                getattr(self, name.lower())(value)

    def _take_python(self, version: str) -> None:
        """`python` is this machine's of the image's version."""
        python = shutil.which(f"python{version}")
        if python is None:
            sys.exit(f"there is no python{version} on PATH, which the image has")
        binaries = Path(os.path.realpath(python)).parent
        for folder in binaries.parents:  # the image's user may run it
            self._inside(str(folder)).chmod(0o755)
        self._environment["PATH"] = f"{binaries}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

    def shell(self, value: str) -> None:
        self._shell = json.loads(value)

    def env(self, value: str) -> None:
        for pair in shlex.split(value):
            name, _, text = pair.partition("=")
            self._environment[name] = text.replace("$PATH", self._environment["PATH"])

    def workdir(self, value: str) -> None:
        self._workdir = Path(value)
        self._inside(value).mkdir(parents=True, exist_ok=True)

    def user(self, value: str) -> None:
        self._user = value

    def copy(self, value: str) -> None:
        *sources, target = value.split()
        for source in sources:
            place = self._inside(str(self._workdir / target))
            if (ROOT / source).is_dir():
                shutil.copytree(ROOT / source, place, dirs_exist_ok=True)
            else:
                shutil.copy(ROOT / source, place)

    def run(self, value: str) -> None:
        self._execute([*self._shell, value])

    def cmd(self, value: str) -> None:
        self._execute(json.loads(value))

    def _inside(self, path: str) -> Path:
        return self._root / path.lstrip("/")

    def _execute(self, command: list[str]) -> None:
        chroot = ["chroot", f"--userspec={self._user}", str(self._root), "env", "-C", str(self._workdir), *command]
        if subprocess.run(chroot, env=self._environment, check=False).returncode:
            sys.exit("that instruction failed")


def stages(structure: list[dict[str, Any]]) -> set[str]:
    """The target and what it is built on."""
    below = {step["value"].split()[-1]: step["value"].split()[0] for step in structure if step["instruction"] == "FROM"}
    found, stage = set(), TARGET
    while stage in below:
        found.add(stage)
        stage = below[stage]
    return found


if __name__ == "__main__":
    main()
