"""Imported first by the fork server (processes.py), which so goes with the replica that started it (lifeline.py)."""

import os
import signal

from serve_app.engine.lifeline import die_with_parent
from serve_app.engine.processes import OWNER_ENV

die_with_parent(signal.SIGKILL)
if os.getppid() != int(os.environ[OWNER_ENV]):  # it went before we could ask
    os.kill(os.getpid(), signal.SIGKILL)
