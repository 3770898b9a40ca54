"""The namespace's quota, and the container that prints Ray's log files."""

from __future__ import annotations

import yaml

from tests.k8s.options.kit import all_options, installation, of_kind, ray_pods


def test_a_quota_bounds_requests_and_closes_other_ways_in() -> None:
    found = installation(quota={"pods": 100, "cpus": 600, "memory_gib": 2500, "gpus": 32})
    assert of_kind(found, "ResourceQuota")["serve-app"]["spec"]["hard"] == {
        "pods": "100",
        "requests.cpu": "600",
        "requests.memory": "2500Gi",
        "requests.nvidia.com/gpu": "32",
        "services.loadbalancers": "0",
        "services.nodeports": "0",
    }
    (limits,) = of_kind(found, "LimitRange")["serve-app"]["spec"]["limits"]
    assert limits["defaultRequest"].keys() == {"cpu", "memory"}, "a container without requests would be refused"


def test_every_ray_pod_prints_the_files_of_its_session() -> None:
    for kind in ("RayService", "RayJob"):
        for pod in ray_pods(all_options(), kind):
            (beside,) = pod.spec["initContainers"]
            assert beside["restartPolicy"] == "Always", "else Ray would wait for its end"
            (mine,) = beside["volumeMounts"]
            (rays,) = [mount for mount in pod.main["volumeMounts"] if mount["mountPath"] == "/tmp"]
            assert (mine["name"], mine["mountPath"], mine["readOnly"]) == (rays["name"], "/tmp", True)
            assert any(argument.startswith("path=/tmp/ray/session_latest/logs/") for argument in beside["args"])


def test_serves_own_lines_are_json_then() -> None:
    config = yaml.safe_load(of_kind(all_options(), "RayService")["all"]["spec"]["serveConfigV2"])
    assert config["logging_config"]["encoding"] == "JSON"
