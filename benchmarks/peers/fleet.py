"""Servers that are up side by side, each frozen but while it is measured; and ours as one of them."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Generic, Protocol, TypeVar

from benchmarks.common import console
from benchmarks.peers import SETTLE_S, signal_session
from benchmarks.peers.vllm_serve import wait_for_answer
from serve_app.client.populations import PopulationClient
from serve_app.errors import ServeAppError
from serve_app.serving.launch.config import ServeConfig
from serve_app.serving.launch.local import local_serve

THAW_TIMEOUT_S = 60.0


class Frozen(Protocol):
    """What is started once and measured in turns with others."""

    def start(self) -> None:
        """Make it answer. Raises ServeAppError when it does not."""

    def thaw(self) -> None:
        """Go on after `freeze`."""

    def freeze(self) -> None:
        """Take no core until `thaw`."""

    def stop(self) -> None:
        """Leave nothing running. May be called twice, and before `start`."""


class Side(Frozen, Protocol):
    """An OpenAI server that can be measured."""

    base_url: str
    model: str


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


S = TypeVar("S", bound=Frozen)


class Fleet(Generic[S]):
    """The sides that are up, each of them frozen. Without the sides in `needed` there is nothing to compare."""

    def __init__(self, makers: Mapping[str, Callable[[], S]], needed: Sequence[str]) -> None:
        self._makers = makers
        self._needed = needed
        self._up: dict[str, S] = {}

    def __enter__(self) -> Fleet[S]:
        return self

    def __exit__(self, *_: object) -> None:
        self._keep(())

    def having(self, names: Sequence[str]) -> dict[str, S]:
        """These sides and no others; those that cannot run here are named and left out.

        Raises ServeAppError when one that is needed is among them.
        """
        self._keep(names)
        for name in names:
            if name in self._up:
                continue
            console.print(f"starting {name}")
            try:
                self._start(name)
            except ServeAppError as error:
                if name in self._needed:
                    raise
                console.print(f"{name} is left out: {error}", markup=False)
        return {name: self._up[name] for name in names if name in self._up}

    def _start(self, name: str) -> None:
        side = self._makers[name]()
        self._up[name] = side  # whatever happens now, it is stopped
        try:
            side.start()
            side.freeze()
        except ServeAppError:
            self._keep([other for other in self._up if other != name])
            raise

    def _keep(self, names: Sequence[str]) -> None:
        with ExitStack() as stopping:  # each is stopped, even if another cannot be
            for name in [name for name in self._up if name not in names]:
                stopping.callback(self._up.pop(name).stop)


@contextmanager
def awake(side: Side) -> Iterator[None]:
    """Let the side run, and give it time for what was due while it was frozen."""
    side.thaw()
    time.sleep(SETTLE_S)
    try:
        wait_for_answer(side.base_url, side.model, timeout_s=THAW_TIMEOUT_S)
        yield
    finally:
        time.sleep(SETTLE_S)
        side.freeze()
