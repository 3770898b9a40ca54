"""Imported first by the fork server (fork.py), so that it ends with its replica (lifeline.py)."""

import os
import signal

from serve_app.engine.processes.fork import OWNER_ENV
from serve_app.engine.processes.lifeline import die_with_parent

die_with_parent(signal.SIGKILL)
if os.getppid() != int(os.environ[OWNER_ENV]):  # it ended before we could ask
    os.kill(os.getpid(), signal.SIGKILL)
