"""The certificate of `http_options`, with which Serve's own proxy speaks HTTPS. Serve reads it once, at its start."""

from __future__ import annotations

import os
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from serve_app.errors import BadSettings
from serve_app.serving.haproxy.environment import INGRESS
from serve_app.serving.launch.document import Document

CERTIFICATE, KEY = "ssl_certfile", "ssl_keyfile"


@dataclass(frozen=True, slots=True)
class Certificate:
    file: Path
    key: Path
    password: str

    @classmethod
    def of(cls, http_options: Mapping[str, Any]) -> Certificate | None:
        """None without TLS. Serve's schema and `document_mistakes` want both files or neither."""
        if not http_options.get(CERTIFICATE):
            return None
        password = str(http_options.get("ssl_keyfile_password") or "")
        return cls(Path(http_options[CERTIFICATE]), Path(http_options[KEY]), password)

    @property
    def context(self) -> ssl.SSLContext:
        """For our own clients on this machine: trusts this certificate, whoever signed it, for any host."""
        context = ssl.create_default_context(cafile=str(self.file))
        context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
        context.check_hostname = False
        return context

    def check(self, document: Document) -> None:
        """Raises BadSettings for files that cannot be read or do not belong together, and beside HAProxy."""
        if os.environ.get(INGRESS) == "1":
            self._refuse(
                document, CERTIFICATE, f"Ray's HAProxy has no TLS, and would answer in the clear: unset {INGRESS}"
            )
        for field, file in ((CERTIFICATE, self.file), (KEY, self.key)):
            try:
                file.read_bytes()
            except OSError as error:
                self._refuse(document, field, f"{file}: {error.strerror or error}")
        try:
            ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(self.file, self.key, lambda: self.password)
        except (OSError, ValueError) as error:
            self._refuse(
                document, CERTIFICATE, f"{self.file} and {self.key} are no certificate with its key, in PEM ({error})"
            )

    def _refuse(self, document: Document, field: str, problem: str) -> None:
        raise BadSettings(f"{document.where(('http_options', field))}: http_options.{field}: {problem}")
