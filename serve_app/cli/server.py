"""Commands that start and check a server."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from serve_app.cli.common import CONFIG_HELP, DEFAULT_URL, BaseUrl, Json, config_file, console

if TYPE_CHECKING:
    from serve_app.serving.launch.config import ServeConfig

Config = Annotated[Path | None, typer.Argument(help=CONFIG_HELP)]


def serve(config: Config = None) -> None:
    """Check a config file, then run `serve run` on it. Ctrl-C stops everything."""
    from serve_app.serving.launch.config import ServeConfig
    from serve_app.serving.launch.local import serve_environment

    path = config_file(config)
    settings = ServeConfig.load(path)
    settings.check()
    print_notes(settings)
    console.print(
        f"serving {settings.replicas} replica(s) at {settings.base_url}/v1; they take a minute or two to be ready. "
        f"`serve-app check` tells when. Ctrl-C stops.",
        markup=False,
    )
    os.environ.update(serve_environment() | settings.ingress)
    os.execv(Path(sys.executable).with_name("serve"), ["serve", "run", str(path)])


def validate(config: Config = None) -> None:
    """Check a config file against the installed vLLM and this machine, without starting anything."""
    from serve_app.serving.launch.config import ServeConfig

    path = config_file(config)
    settings = ServeConfig.load(path)
    settings.check(port=False)  # the server may be running
    print_notes(settings)
    console.print(f"{path}: {settings.replicas} replica(s), {settings.base_url}", markup=False)


def init(
    config: Annotated[Path, typer.Argument(help="Where to write it.")] = Path("config.yaml"),
    force: Annotated[bool, typer.Option("--force", help="Write over a file that is there.")] = False,
) -> None:
    """Write the packaged config file, to be changed and served."""
    from serve_app.serving.launch.default import write_config

    write_config(config, force=force)
    console.print(f"wrote {config}; `serve-app serve {config}` starts it", markup=False, highlight=False)


def print_notes(settings: ServeConfig, output: Console = console) -> None:
    for note in settings.notes():
        output.print(f"note: {note}", markup=False, highlight=False)


def check(
    base_url: BaseUrl = DEFAULT_URL,
    replicas: Annotated[int, typer.Option(help="How many replicas there should be at least.")] = 1,
    as_json: Json = False,
) -> None:
    """Verify a running server step by step."""
    from serve_app.client.check import run_checks

    if as_json:
        steps = [
            {"step": name, "ok": problem is None, "detail": problem or detail}
            for name, problem, detail in run_checks(base_url, replicas)
        ]
        passed = all(step["ok"] for step in steps)
        print(json.dumps({"ok": passed, "base_url": base_url, "steps": steps}))
        sys.exit(0 if passed else 1)
    failed = 0
    for name, problem, detail in run_checks(base_url, replicas):
        failed += problem is not None
        mark = "[green]ok[/green]  " if problem is None else "[red]FAIL[/red]"
        console.print(f"{mark} {name}: ", end="")
        console.print(detail if problem is None else problem, markup=False, highlight=False)
    if failed:
        sys.exit(1)
