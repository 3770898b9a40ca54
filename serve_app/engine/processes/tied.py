"""Imported first by the fork server (fork.py), which so goes with the replica that started it (lifeline.py)."""

import os
import signal

from serve_app.engine.processes.fork import OWNER_ENV
from serve_app.engine.processes.lifeline import die_with_parent

die_with_parent(signal.SIGKILL)
if os.getppid() != int(os.environ[OWNER_ENV]):  # it went before we could ask
    os.kill(os.getpid(), signal.SIGKILL)
