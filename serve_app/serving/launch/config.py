"""Reads a Serve config file as `serve run` does, and finds mistakes before the start, in a second. `serve run` reports
a wrong argument after 30 s, inside a replica.
"""

from __future__ import annotations

import socket
import ssl
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from serve_app.engine.host.cpu import GIB, available_cores, cpu_build, memory_bytes
from serve_app.engine.host.fit import fit_to_host
from serve_app.engine.options import known_options, option_mistakes
from serve_app.errors import BadSettings, StoreError, UnknownOption
from serve_app.mistakes import dotted
from serve_app.models.catalog import (
    check_heads,
    check_kv_cache,
    check_length,
    read_config,
    resolve_model,
    stored_type,
)
from serve_app.serving.gate.keys import read_keys
from serve_app.serving.launch.applications import document_mistakes
from serve_app.serving.launch.certificate import HAPROXY_ENV, Certificate
from serve_app.serving.launch.document import Document
from serve_app.serving.launch.wiring import EngineConfig, Wiring, missing_applications
from serve_app.settings import AccessSettings, DriverSettings
from serve_app.storage.filesystem import Folder

# Serve's default: every address.
SERVE_HOST = "0.0.0.0"


@dataclass(frozen=True, slots=True)
class ServeConfig:
    """A checked config file. The first of `engines` answers requests without a model; `worked` has populations."""

    document: Document
    host: str
    port: int
    engines: tuple[EngineConfig, ...]
    driver_settings: DriverSettings
    accesses: tuple[AccessSettings, ...]
    certificate: Certificate | None  # with one the server speaks HTTPS alone

    @property
    def replicas(self) -> int:
        """How many should be ready at the start, over all engines."""
        return sum(engine.replicas for engine in self.engines)

    @property
    def worked(self) -> EngineConfig:
        return next(engine for engine in self.engines if engine.app == self.driver_settings.replicas)

    @property
    def base_url(self) -> str:
        scheme = "https" if self.certificate else "http"
        return f"{scheme}://{'127.0.0.1' if self.host == '0.0.0.0' else self.host}:{self.port}"

    @property
    def trusted(self) -> ssl.SSLContext | bool:
        """`verify` of httpx, for our own clients on this machine."""
        return self.certificate.context if self.certificate else True

    @property
    def ingress(self) -> dict[str, str]:
        """Variables of `serve run` that the file decides: Serve's own proxy has TLS, Ray's HAProxy none."""
        return {HAPROXY_ENV: "0"} if self.certificate else {}

    @classmethod
    def load(cls, path: Path) -> ServeConfig:
        """Parse and validate. Raises BadSettings with a line and place for each mistake."""
        document = Document(path)
        document.refuse([*document_mistakes(document.data), *missing_applications(document.data)])
        wired = Wiring.of(document.data)
        document.refuse(wired.mistakes())
        http = document.data.get("http_options") or {}
        return cls(
            document=document,
            host=str(http.get("host", SERVE_HOST)),
            port=int(http.get("port", 8000)),
            engines=wired.engines,
            driver_settings=wired.driver,
            accesses=wired.accesses,
            certificate=Certificate.of(http),
        )

    def check(self, *, port: bool = True) -> None:
        """Check options, model, tensor parallelism, port and store against vLLM and this machine. Raises BadSettings,
        UnknownOption, ModelNotFound or NotEnoughMemory.
        """
        real = [engine for engine in self.engines if engine.settings.simulated is None]
        self._check_options(real)
        self._check_models(real)
        for file in {file for access in self.accesses for file in access.key_files}:
            read_keys(Path(file))
        self._check_address(self.port if port else 0)
        if self.certificate:
            self.certificate.check(self.document)
        store = self.driver_settings.store
        if "://" in store:
            Folder.at(store).check()
        else:
            check_store(Path(store))

    def _check_options(self, engines: list[EngineConfig]) -> None:
        found = [(engine, option_mistakes(engine.settings.engine)) for engine in engines]
        unknown = any(name not in known_options() for engine, _ in found for name in engine.settings.engine)
        mistakes = [one.below((*engine.place, "args", "engine")) for engine, some in found for one in some]
        self.document.refuse(mistakes, UnknownOption if unknown else BadSettings)

    def _check_models(self, engines: list[EngineConfig]) -> None:
        free, total = memory_bytes()
        for engine in engines:
            options = engine.settings.engine
            ranks = int(options.get("tensor_parallel_size") or 1)
            with self._at(engine):
                model = resolve_model(options["model"])
                check_heads(model, ranks)
                check_length(model, options)
            dtype = _dtype(options, model)
            if cpu_build():
                replicas = max(1, engine.replicas)  # zero at the start still needs room for one
                fit = fit_to_host(options, model, replicas=replicas, total=total, free=free, checked=replicas)
                free -= ranks * replicas * (fit.worker + fit.kv)
                dtype = fit.chosen.dtype if fit.chosen else dtype
            with self._at(engine):
                check_kv_cache(model, options, dtype)

    @contextmanager
    def _at(self, engine: EngineConfig) -> Iterator[None]:
        """Add file and application to errors of a field of `engine`."""
        try:
            yield
        except BadSettings as error:
            field = error.field or str(error).split()[0]
            place = (*engine.place, "args", *field.split("."))
            above = dotted((*engine.place, "args"))
            raise type(error)(f"{self.document.where(place)}: {above}.{error}") from error

    def notes(self) -> list[str]:
        """Notes for a user who starts this here, one sentence each; after `check`."""
        if not cpu_build():
            return []
        notes, cores, total = [], len(available_cores()), memory_bytes()[1]
        for engine in self.engines:
            if engine.settings.simulated is not None:
                continue
            options = engine.settings.engine
            ranks = int(options.get("tensor_parallel_size") or 1)
            model, replicas = resolve_model(options["model"]), max(1, engine.replicas)
            fit = fit_to_host(options, model, replicas=replicas, total=total, free=total)
            if fit.chosen:
                dtype, reason = fit.chosen
                notes.append(f"{engine.app} compute in {dtype}: {reason}; engine.dtype sets another type")
            if engine.replicas * ranks > max(cores, ranks):
                enough = max(1, cores // ranks)
                spared = (engine.replicas - enough) * ranks * (fit.worker + fit.kv) / GIB
                notes.append(
                    f"{engine.replicas} replicas of {ranks} ranks share {cores} cores: num_replicas: {enough} would be "
                    f"as fast and need {spared:.1f} GiB less memory"
                )
        return notes

    def _check_address(self, port: int) -> None:
        """Whether this machine has the address and a free port; port 0 checks the address only."""
        place = ("http_options", "port" if port else "host")
        try:
            with socket.socket(socket.AF_INET6 if ":" in self.host else socket.AF_INET) as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind((self.host, port))
        except OSError as error:
            if port:
                self._check_address(0)  # raises for a wrong host
                what = f"port {port} on {self.host} cannot be used ({error.strerror}): stop what listens there, or set "
                raise BadSettings(
                    f"{self.document.where(place)}: http_options.{what}another port in the config file"
                ) from error
            raise BadSettings(
                f"{self.document.where(place)}: http_options.host '{self.host}' is no address of this machine "
                f"({error.strerror}): 127.0.0.1 is this machine alone, 0.0.0.0 every address of it"
            ) from error


def set_store(document: dict[str, Any], store: str) -> None:
    """Set this store in all applications that have one."""
    for application in document["applications"]:
        if "store" in application.get("args", {}):
            application["args"]["store"] = store


def _dtype(options: Mapping[str, Any], model: Path | str) -> str:
    asked = options.get("dtype")
    return stored_type(read_config(model)) if asked in (None, "auto") else str(asked)


def check_store(folder: Path) -> None:
    """Raise StoreError unless files can be made in `folder`, created if needed."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise StoreError(f"store: cannot write in {folder.absolute()}: {error.strerror or error}") from error
