"""An actor of a TP=2 replica gets both devices. Ray's GPUs are logical here; the engine is simulated."""

import json
import subprocess
import sys

import pytest

SCRIPT = """
import json, ray, yaml
from ray import serve
from serve_app.serving.replica import Replica
from serve_app.settings import ReplicaSettings

options = yaml.safe_load(open("config.gpu.yaml"))["applications"][0]
deployment = options["deployments"][0]
ray.init(num_cpus=8, num_gpus=4, include_dashboard=False, log_to_driver=False)
serve.start(http_options={"host": "127.0.0.1", "port": PORT})
settings = ReplicaSettings(engine=options["args"]["engine"], simulated={})
replica = Replica.options(
    num_replicas=deployment["num_replicas"], ray_actor_options=deployment["ray_actor_options"]
)
handle = serve.run(replica.bind(settings), name="replicas")
print(json.dumps([r.accelerators for r in handle.broadcast("describe").results()]))
serve.shutdown()
"""


@pytest.mark.timeout(180)
def test_each_replica_holds_two_devices_of_its_own(free_port: int) -> None:
    result = subprocess.run(
        [sys.executable, "-c", SCRIPT.replace("PORT", str(free_port))], capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr[-2000:]
    (line,) = [line for line in result.stdout.splitlines() if line.startswith("[[")]
    devices = json.loads(line)
    assert [len(own) for own in devices] == [2, 2]
    assert sorted(device for own in devices for device in own) == ["0", "1", "2", "3"]
