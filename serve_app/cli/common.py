"""What the commands share: where the server is, how to print, and how errors end."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

DEFAULT_URL = "http://127.0.0.1:8000"
console = Console(soft_wrap=True)
error_console = Console(stderr=True, soft_wrap=True)

CONFIG_HELP = "Serve config file; if not given, ./config.yaml, or else the one that comes with the package."
BaseUrl = Annotated[str, typer.Option("--base-url", envvar="SERVE_APP_BASE_URL", help="Where the server is.")]
Json = Annotated[bool, typer.Option("--json", "-q", help="Print only the JSON line, no progress and no notes.")]
INTERRUPTED = 130  # what shells give for SIGINT


@contextmanager
def goes_on_without_us(job_id: str, base_url: str, results: str = "population results") -> Iterator[None]:
    """While a job is followed: Ctrl-C ends the command, says that the job goes on, and how to come back to it.

    `results` is the command that gets this job's results.
    """
    try:
        yield
    except KeyboardInterrupt:
        where = "" if base_url == DEFAULT_URL else f" --base-url {base_url}"
        error_console.print(f"\njob {job_id} goes on at {base_url}", highlight=False, markup=False)
        for what, command in (
            ("follow", "population watch"),
            ("cancel", "population cancel"),
            ("resume", "population resume"),
            ("results", results),
        ):
            error_console.print(f"  {what:8} serve-app {command} {job_id}{where}", highlight=False, markup=False)
        raise typer.Exit(INTERRUPTED) from None


def config_file(given: Path | None) -> Path:
    """What `serve_app.serving.launch.default` finds; a line says so where that is the package's own file."""
    from serve_app.serving.launch.default import find_config, packaged_config

    found = find_config(given)
    if given is None and found == packaged_config():
        # Not to stdout, where a command may print nothing but JSON.
        Console(stderr=True, soft_wrap=True).print(
            f"no config.yaml here: taking {found}, which comes with the package (`serve-app init` copies it here)",
            markup=False,
            highlight=False,
        )
    return found
