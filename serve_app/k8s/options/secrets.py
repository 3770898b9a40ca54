"""ExternalSecrets: each Secret that pods name, made from a manager of secrets.

A Secret of one key is a whole entry, PATH/NAME; one of several is an entry in JSON, of which each key is a property.
"""

from __future__ import annotations

from serve_app.k8s.pods import Manifest, metadata
from serve_app.k8s.values import Values
from serve_app.k8s.values_file.options import SECRET_KEYS, ExternalSecrets


def external_secrets(values: Values) -> list[Manifest]:
    source = values.external_secrets
    return [_external_secret(values, source, name) for name in source.secrets] if source else []


def _external_secret(values: Values, source: ExternalSecrets, secret: str) -> Manifest:
    name, entry = values.named(secret), f"{source.path}/{secret}"
    keys = (values.alerts.key,) if secret == "alerts" and values.alerts else SECRET_KEYS[secret]
    spec: Manifest = {
        "refreshInterval": source.refresh,
        "secretStoreRef": {"name": source.store, "kind": source.kind},
        "target": {"name": name, "creationPolicy": "Owner", "deletionPolicy": "Retain"},  # a lost entry stops no pod
    }
    if keys:
        whole = len(keys) == 1
        spec["data"] = [
            {"secretKey": key, "remoteRef": {"key": entry} if whole else {"key": entry, "property": key}}
            for key in keys
        ]
    else:
        spec["dataFrom"] = [{"extract": {"key": entry}}]
    return {
        "apiVersion": "external-secrets.io/v1",
        "kind": "ExternalSecret",
        "metadata": metadata(values, name, ""),
        "spec": spec,
    }
