"""A receiver of Alertmanager for this namespace's alerts (cluster/helm/prometheus.yaml selects it by its label)."""

from __future__ import annotations

from serve_app.k8s.pods import Manifest, metadata
from serve_app.k8s.values import Values

SECRET = "alerts"
RECEIVER = "people"


def receiver(values: Values) -> list[Manifest]:
    if (alerts := values.alerts) is None:
        return []
    source = {"name": values.named(SECRET), "key": alerts.key}
    ways: dict[str, Manifest] = {
        "slack": {
            "apiURL": source,
            "channel": alerts.channel,
            "title": "{{ .CommonLabels.alertname }} in {{ .CommonLabels.namespace }}",
            "text": "{{ range .Alerts }}{{ .Annotations.summary }} ({{ .Annotations.runbook }})\n{{ end }}",
        },
        "pagerduty": {"routingKey": source, "severity": "{{ .CommonLabels.severity }}"},
        "webhook": {"urlSecret": source},
    }
    return [
        {
            "apiVersion": "monitoring.coreos.com/v1alpha1",
            "kind": "AlertmanagerConfig",
            "metadata": metadata(values, values.name, ""),
            "spec": {
                "route": {
                    "receiver": RECEIVER,
                    "groupBy": ["alertname"],
                    "groupWait": "30s",
                    "groupInterval": "5m",
                    "repeatInterval": "4h",
                    "matchers": [{"name": "alertname", "matchType": "=~", "value": "ServeApp.*"}],
                },
                "receivers": [
                    {"name": RECEIVER, f"{alerts.kind}Configs": [{"sendResolved": True, **ways[alerts.kind]}]}
                ],
            },
        }
    ]
