"""Our server as a side of a comparison: `serve run` of a config file, frozen but while it is measured."""

from __future__ import annotations

import os
import signal
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path

from benchmarks.common import console
from benchmarks.peers import signal_session
from benchmarks.peers.vllm_serve import wait_for_answer
from serve_app.client.populations import PopulationClient
from serve_app.errors import ServeAppError
from serve_app.serving.launch.config import ServeConfig
from serve_app.serving.launch.local import local_serve


class Ours:
    """The server of `config`, whose model is `model`, with `env` over the defaults of our commands."""

    def __init__(self, config: Path, *, model: str, env: Mapping[str, str]) -> None:
        self._config = config
        self._env = dict(env)
        self._running = ExitStack()
        self._session: int | None = None
        self.base_url, self.model = ServeConfig.load(config).base_url, model

    def start(self) -> None:
        log = self._config.with_name("serve.log")
        self._running.enter_context(local_serve(self._config, log=log, on_wait=console.print, env=self._env))
        self._session = os.getsid(PopulationClient(self.base_url).replicas()[0].pid)
        self._running.callback(self.thaw)  # what is frozen does not stop
        wait_for_answer(self.base_url, self.model)  # HAProxy has its own idea of when a replica is there

    @property
    def session(self) -> int:
        """The session of its processes. Raises ServeAppError before `start`."""
        if self._session is None:
            raise ServeAppError("our server does not run")
        return self._session

    def thaw(self) -> None:
        if self._session is not None:
            signal_session(self._session, signal.SIGCONT)

    def freeze(self) -> None:
        if self._session is not None:
            signal_session(self._session, signal.SIGSTOP)

    def stop(self) -> None:
        self._running.close()
        self._session = None
