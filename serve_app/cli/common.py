"""What commands share, and the grammar `serve-app GROUP COMMAND --kebab-case`.

Hidden older spellings still work: underscores, renamed options (`spelling`), and a group without a command
(`DefaultGroup`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table
from typer.core import TyperGroup

from serve_app.errors import BadSettings

if TYPE_CHECKING:
    from serve_app.client.populations import PopulationClient

DEFAULT_URL = "http://127.0.0.1:8000"
console = Console(soft_wrap=True)
error_console = Console(stderr=True, soft_wrap=True)

CONFIG_HELP = "Serve config file; if not given, ./config.yaml, or else the one that comes with the package."
BaseUrl = Annotated[str, typer.Option("--base-url", envvar="SERVE_APP_BASE_URL", help="Where the server is.")]
Json = Annotated[bool, typer.Option("--json", "-q", help="Print only the JSON line, no progress and no notes.")]
Open = Annotated[bool, typer.Option("--open", help="Open the report in a browser.")]
INTERRUPTED = 130  # the shells' code for SIGINT


def connect(base_url: str) -> PopulationClient:
    """The client of a running server. Raises ServerUnavailable before slow imports."""
    from serve_app.client.populations import PopulationClient

    client = PopulationClient(base_url)
    client.ping()
    return client


@contextmanager
def stops(message: Callable[[], str]) -> Iterator[None]:
    """On Ctrl-C print `message()` and end the command."""
    try:
        yield
    except KeyboardInterrupt:
        error_console.print(f"\nstopped: {message()}", highlight=False, markup=False)
        raise typer.Exit(INTERRUPTED) from None


@contextmanager
def goes_on_without_us(job_id: str, base_url: str, results: str = "population results") -> Iterator[None]:
    """On Ctrl-C end the command and print how to return to the running job.

    `results` is the command for its results.
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
    """The config file; prints a line for the package's own."""
    from serve_app.serving.launch.default import find_config, packaged_config

    found = find_config(given)
    if given is None and found == packaged_config():
        # stdout may be JSON only.
        error_console.print(
            f"no config.yaml here: taking {found}, which comes with the package (`serve-app init` copies it here)",
            markup=False,
            highlight=False,
        )
    return found


def spelling(renamed: Mapping[str, str] | None = None) -> dict[str, Any]:
    """Context settings for underscores, and for `renamed` options (old: new)."""
    names = renamed or {}

    def normal(name: str) -> str:
        name = name.replace("_", "-")
        return names.get(name, name)

    return {"token_normalize_func": normal}


class DefaultGroup(TyperGroup):
    """Arguments without a command go to `default`, as in `serve-app ctr --ad X`.

    Options before another command are refused.
    """

    default = ""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """The arguments, with the default's name first if no command is named."""
        if not args or (args[0].startswith("-") and args[0] not in ctx.help_option_names):
            default = self.commands[self.default]
            reading = {"parent": ctx, "resilient_parsing": True, "allow_extra_args": True}
            rest = default.make_context(self.default, list(args), **reading).args
            for name in rest:
                if name in self.commands:
                    before = " ".join(args[: args.index(name)])
                    ctx.fail(f"write options after the command: {ctx.command_path} {name} {before}")
            args = [self.default, *args]
        return super().parse_args(ctx, args)


def default_group(default: str) -> type[DefaultGroup]:
    return type("Group", (DefaultGroup,), {"default": default})


def given(context: typer.Context) -> dict[str, str]:
    """Explicitly given parameters, each with its flag."""
    return {
        str(parameter.name): parameter.opts[0]
        for parameter in context.command.params
        if (source := context.get_parameter_source(str(parameter.name))) and source.name != "DEFAULT"
    }


def refuse(context: typer.Context, *, besides: set[str], why: str) -> None:
    """Raise BadSettings if an option other than `besides` was given."""
    if idle := [flag for name, flag in given(context).items() if name not in besides]:
        raise BadSettings(f"{', '.join(idle)}: {why}")


def tell_files(paths: Iterable[Path], output: Console, *, open_page: bool) -> None:
    written = list(paths)
    output.print("results: " + ", ".join(map(str, written)), markup=False)
    for page in written:
        if open_page and page.suffix == ".html":
            typer.launch(str(page))


def output_of(as_json: bool) -> Console:
    """Silent with --json."""
    return Console(stderr=True, quiet=True) if as_json else console


def print_whole(table: Table) -> None:
    """Print a table without truncation. A narrow terminal folds cells, the first column last."""
    for column in table.columns:
        column.overflow = "fold"
    wanted = Measurement.get(console, console.options.update(max_width=100_000), table).maximum
    if console.is_terminal:
        first = max(len(str(cell)) for cell in [*table.columns[0].cells, ""])
        table.columns[0].no_wrap = first < console.width // 2
        console.print(table)
    else:
        Console(width=max(wanted, console.width), soft_wrap=True).print(table)
