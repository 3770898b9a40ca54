"""`serve-app keys`: create, list and revoke API keys in a key file. Running servers reload it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, get_args

import typer
from rich.table import Table

from serve_app.cli.common import Json, console, error_console, print_whole
from serve_app.errors import BadSettings

app = typer.Typer(help="API keys: create, list, revoke.", no_args_is_help=True)

KeyFile = Annotated[Path, typer.Option("--file", help="Key file, YAML or .json; what `key_files` in the config names.")]
Name = Annotated[str, typer.Argument(help="What logs and limits call the key.")]


@app.command()
def create(
    name: Name,
    file: KeyFile,
    requests_per_minute: Annotated[int | None, typer.Option(min=1, help="Over all replicas.")] = None,
    tokens_per_minute: Annotated[int | None, typer.Option(min=1, help="Prompt and completion.")] = None,
    scope: Annotated[list[str] | None, typer.Option(help="inference or populations; default: all.")] = None,
    expires: Annotated[str | None, typer.Option(help="Date and time with zone, as 2027-01-31T00:00:00Z.")] = None,
) -> None:
    """Create a key and print it once; the file has only its hash."""
    from serve_app.serving.gate.key_file import create_key
    from serve_app.serving.gate.keys import Scope

    known = get_args(Scope)
    if unknown := [one for one in scope or () if one not in known]:
        raise BadSettings(f"--scope '{unknown[0]}' is unknown: use {' or '.join(known)}")
    options = {
        "requests_per_minute": requests_per_minute,
        "tokens_per_minute": tokens_per_minute,
        "scopes": scope,
        "expires": expires,
    }
    key = create_key(file, name, **{option: value for option, value in options.items() if value})
    error_console.print(f"key '{name}' is in {file}; it is shown only now:", markup=False)
    console.print(key, markup=False, highlight=False)


@app.command("list")
def list_keys(file: KeyFile, as_json: Json = False) -> None:
    """The keys' names, states and limits."""
    from serve_app.serving.gate.keys import read_keys

    if as_json:
        keys = [{**key.model_dump(mode="json", exclude={"sha256"}), "state": key.state} for key in read_keys(file)]
        print(json.dumps(keys))
        return
    table = Table("name", "state", "scopes", "requests/min", "tokens/min", "created", "expires")
    for key in read_keys(file):
        limits = (key.requests_per_minute, key.tokens_per_minute)
        times = (key.created, key.expires)
        table.add_row(
            key.name,
            key.state,
            ", ".join(key.scopes) if key.scopes is not None else "all",
            *(str(limit) if limit is not None else "–" for limit in limits),
            *(f"{time:%Y-%m-%d %H:%M %Z}" if time is not None else "–" for time in times),
        )
    print_whole(table)


@app.command()
def revoke(name: Name, file: KeyFile) -> None:
    """Disable a key; servers notice within seconds."""
    from serve_app.serving.gate.key_file import revoke_key

    revoke_key(file, name)
    console.print(f"key '{name}' is revoked", markup=False)
