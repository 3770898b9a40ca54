"""ExternalSecrets: names and keys are those that pods name."""

from __future__ import annotations

import pytest

from serve_app.k8s.rules.manifests import containers, templates
from serve_app.k8s.rules.references import referred
from tests.k8s.options.kit import all_options, installation, of_kind

SOURCE = {"store": "aws", "path": "team/llm"}


def test_every_secret_that_a_pod_names_is_made() -> None:
    made = {one["spec"]["target"]["name"] for one in of_kind(all_options(), "ExternalSecret").values()}
    named = {name for t in templates(all_options()) for kind, name in referred(t.spec) if kind == "Secret"}
    assert named - made == {"all-pods-tls"}, "cert-manager's"


def test_a_secret_of_one_key_is_a_whole_entry() -> None:
    made = of_kind(installation(external_secrets=SOURCE), "ExternalSecret")
    assert set(made) == {"serve-app-keys", "serve-app-redis"}
    assert made["serve-app-redis"]["spec"]["data"] == [
        {"secretKey": "password", "remoteRef": {"key": "team/llm/redis"}}
    ]
    assert made["serve-app-keys"]["spec"]["secretStoreRef"] == {"name": "aws", "kind": "ClusterSecretStore"}


@pytest.mark.parametrize(("kind", "key"), [("slack", "url"), ("pagerduty", "routing-key"), ("webhook", "url")])
def test_the_key_of_alerts_is_the_receivers(kind: str, key: str) -> None:
    alerts = {"kind": kind, **({"channel": "#llm"} if kind == "slack" else {})}
    source = {**SOURCE, "secrets": ["keys", "redis", "alerts"]}
    found = installation(monitoring=True, alerts=alerts, external_secrets=source)
    (entry,) = of_kind(found, "ExternalSecret")["serve-app-alerts"]["spec"]["data"]
    assert entry["secretKey"] == key
    assert f"'key': '{key}'" in str(of_kind(found, "AlertmanagerConfig")["serve-app"]["spec"]["receivers"])


def test_keys_of_providers_are_variables_of_the_drivers_pods_alone() -> None:
    parts = {
        template.labels["serve-app/part"]
        for template in templates(all_options())
        for container in containers(template.spec)
        if any(one["secretRef"]["name"] == "all-providers" for one in container.get("envFrom") or [])
    }
    assert parts == {"control", "population-control"}


def test_without_a_gpu_the_driver_is_in_the_worker() -> None:
    pods = [t for t in templates(installation(run={"server": "cpu"})) if t.main.get("envFrom")]
    assert [pod.labels["serve-app/part"] for pod in pods] == ["replica"]
