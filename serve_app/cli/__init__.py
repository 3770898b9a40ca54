"""The command line. Nothing imports it; commands import heavy libraries when run."""

from __future__ import annotations

import sys
from importlib import metadata
from typing import Annotated

import typer

from serve_app.cli import ctr, icm, k8s, keys, population, server, up
from serve_app.cli.common import error_console, spelling
from serve_app.errors import BadSettings, ServeAppError

app = typer.Typer(
    help="Whole-population LLM inference on Ray Serve and vLLM.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings=spelling(),
)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"serve-app {metadata.version('serve-app')}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and leave.", is_eager=True, callback=_print_version)
    ] = False,
) -> None:
    """Whole-population LLM inference on Ray Serve and vLLM."""


for command in (ctr.demo, up.up, server.init, server.serve, server.validate, server.check):
    app.command()(command)
app.command("icm-preset", hidden=True)(icm.preset)  # must precede `icm preset`
app.add_typer(ctr.app, name="ctr")
app.add_typer(icm.app, name="icm")
app.add_typer(population.app, name="population")
app.add_typer(keys.app, name="keys")
app.add_typer(k8s.app, name="k8s")


def main() -> None:
    """Entry point. Prints our own errors on one line, without a traceback."""
    try:
        app()
    except ServeAppError as error:
        error_console.print(f"error: {error}", style="bold red", markup=False)
        sys.exit(2 if isinstance(error, BadSettings) else 1)


if __name__ == "__main__":
    main()
