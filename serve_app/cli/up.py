"""`serve-app up`: a server on this machine until Ctrl-C."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

from serve_app.cli.common import DEFAULT_URL, config_file, console
from serve_app.cli.server import Config, print_notes
from serve_app.errors import ServerUnavailable

if TYPE_CHECKING:
    from serve_app.serving.launch.config import ServeConfig
    from serve_app.serving.launch.wiring import EngineConfig


def up(
    config: Config = None,
    simulated: Annotated[bool, typer.Option("--simulated", help="No model: made-up answers.")] = False,
    log: Annotated[Path, typer.Option(help="File for what Ray, Serve and the engines print.")] = Path("runs/serve.log"),
) -> None:
    """Start a server, wait until it is ready, and print how to use it. Ctrl-C stops it."""
    from serve_app.serving.launch.config import ServeConfig
    from serve_app.serving.launch.local import local_server
    from serve_app.serving.launch.simulated import write_simulated

    signal.signal(signal.SIGTERM, signal.default_int_handler)  # supervisors send SIGTERM
    path = config_file(config)
    if simulated:
        path = write_simulated(path, log.with_name("simulated.yaml"))
    settings = ServeConfig.load(path)
    console.print(f"starting {path} (log: {log})", markup=False, highlight=False)
    settings.check()
    for engine in settings.engines:
        console.print(f"  {engine_line(engine)}", markup=False, highlight=False)
    print_notes(settings)
    try:
        with WaitLines() as told, local_server(path, log=log, on_wait=told.say) as server:
            told.stop()
            console.print(ready_text(server.settings), markup=False, highlight=False)
            code = server.wait()
    except KeyboardInterrupt:
        console.print("stopped", highlight=False)
        return
    raise ServerUnavailable(f"the server ended by itself with status {code}: see {log}")


class WaitLines:
    """One changing line on a terminal, separate lines elsewhere."""

    def __init__(self) -> None:
        self._status = console.status("starting") if console.is_terminal else None

    def __enter__(self) -> WaitLines:
        if self._status is not None:
            self._status.start()
        return self

    def __exit__(self, *raised: object) -> None:
        self.stop()

    def say(self, line: str) -> None:
        if self._status is not None:
            self._status.update(escape(line))
        else:
            console.print(f"  {line}", markup=False, highlight=False)

    def stop(self) -> None:
        if self._status is not None:
            self._status.stop()


def engine_line(engine: EngineConfig) -> str:
    """As in "2 replicas of SmolLM2 (tensor parallel 2)"."""
    options = engine.settings.engine
    plural = "" if engine.replicas == 1 else "s"
    if engine.settings.simulated is not None:
        return f"{engine.app}: {engine.replicas} SIMULATED replica{plural} of {engine.models[0]}: no model is loaded"
    ranks = options.get("tensor_parallel_size") or 1
    return f"{engine.app}: {engine.replicas} replica{plural} of {engine.models[0]}, tensor parallel {ranks}"


def ready_text(settings: ServeConfig) -> str:
    """The server's address, an example request, and next steps."""
    url, engine = settings.base_url, settings.engines[0]
    body = json.dumps({"model": engine.models[0], "messages": [{"role": "user", "content": "Say hello."}]})
    where = "" if url == DEFAULT_URL else f" --base-url {url}"
    simulated = " (SIMULATED: answers are made up)" if engine.settings.simulated is not None else ""
    return f"""
ready{simulated}
  OpenAI clients  base_url {url}/v1, model {engine.models[0]}
  a request       curl -s {url}/v1/chat/completions -H 'content-type: application/json' -d '{body}'
  a population    serve-app ctr predict --ad "New smartphone launch" --population-size 100{where}
  verify it       serve-app check{where}
  stop            Ctrl-C
"""
