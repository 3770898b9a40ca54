"""The fork server (fork.py) imports this first, to end with its replica (lifeline.py)."""

import os
import signal

from serve_app.engine.processes.fork import OWNER_ENV
from serve_app.engine.processes.lifeline import die_with_parent

die_with_parent(signal.SIGKILL)
if os.getppid() != int(os.environ[OWNER_ENV]):  # ended before the request
    os.kill(os.getpid(), signal.SIGKILL)
