"""HTTPS up to the pods."""

from __future__ import annotations

import re
import subprocess

import yaml

from serve_app.k8s.rules.manifests import variables
from tests.k8s.options.kit import all_options, installation, of_kind, problems, ray_pods


def test_serve_has_certificate_and_key_from_a_mount_of_every_pod() -> None:
    service = of_kind(all_options(), "RayService")["all"]
    http = yaml.safe_load(service["spec"]["serveConfigV2"])["http_options"]
    assert (http["ssl_certfile"], http["ssl_keyfile"]) == ("/etc/serve-app/tls/tls.crt", "/etc/serve-app/tls/tls.key")
    (certificate,) = of_kind(all_options(), "Certificate").values()
    for pod in ray_pods(all_options()):
        volumes = {volume["name"]: volume for volume in pod.spec["volumes"]}
        (mount,) = [one for one in pod.main["volumeMounts"] if one["mountPath"] == "/etc/serve-app/tls"]
        assert volumes[mount["name"]]["secret"]["secretName"] == certificate["spec"]["secretName"]


def test_the_certificate_is_of_the_service_that_load_balancers_and_port_forwards_ask() -> None:
    (certificate,) = of_kind(all_options(), "Certificate").values()
    assert {"all-serve-svc.all.svc", "localhost"} <= set(certificate["spec"]["dnsNames"])
    assert certificate["spec"]["ipAddresses"] == ["127.0.0.1"]
    assert certificate["spec"]["issuerRef"]["name"] == "serve-app-internal"


def test_workers_are_probed_by_https_and_rays_haproxy_is_off() -> None:
    for pod in ray_pods(all_options()):
        assert variables(pod.main)["RAY_SERVE_ENABLE_HA_PROXY"] == "0"
        if pod.place == "worker":
            (command,) = pod.main["readinessProbe"]["exec"]["command"][2:]
            assert "https://localhost:8000/-/healthz" in command
            assert "http://localhost:52365/api/local_raylet_healthz" in command


def test_the_probes_command_is_a_shells() -> None:
    (command, *_) = [
        p.main["readinessProbe"]["exec"]["command"] for p in ray_pods(all_options()) if p.place == "worker"
    ]
    assert subprocess.run(["bash", "-n", "-c", command[2]], check=False).returncode == 0
    assert len(re.findall(r"\bwget\b", command[2])) == 2


def test_the_load_balancer_asks_by_https() -> None:
    for ingress in of_kind(all_options(), "Ingress").values():
        assert ingress["metadata"]["annotations"]["alb.ingress.kubernetes.io/backend-protocol"] == "HTTPS"


def test_a_population_on_loopback_stays_without() -> None:
    config = next(one for one in of_kind(all_options(), "ConfigMap").values() if "serve.yaml" in one["data"])
    assert "ssl_" not in config["data"]["serve.yaml"]
    assert [pod for pod in ray_pods(all_options(), "RayJob") if "readinessProbe" in pod.main] == []


def test_without_an_issuer_the_secret_is_somebody_elses() -> None:
    found = installation(tls={"pods": True})
    assert of_kind(found, "Certificate") == {}
    assert problems(found) == []
