"""What the commands share: where the server is, how to print, and how errors end."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.console import Console

DEFAULT_URL = "http://127.0.0.1:8000"
console = Console(soft_wrap=True)

BaseUrl = Annotated[str, typer.Option("--base-url", help="Where the server is.")]
