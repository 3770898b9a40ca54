"""HTTPS from the load balancer to Serve's proxies in the pods.

Serve's own proxy has TLS (`http_options.ssl_*`), Ray's HAProxy has none. Serve reads the certificate when it starts: a
renewed one takes effect with a pod's next start. Ray's own processes talk without TLS (docs/how-to/eks.md).
"""

from __future__ import annotations

from serve_app.k8s.pods import Manifest, metadata
from serve_app.k8s.serve_config import TLS_FOLDER
from serve_app.k8s.values import Values

SECRET = "pods-tls"
ENVIRONMENT = {"RAY_SERVE_ENABLE_HA_PROXY": "0"}
ALB = {
    "alb.ingress.kubernetes.io/backend-protocol": "HTTPS",
    "alb.ingress.kubernetes.io/healthcheck-protocol": "HTTPS",
}
# Of KubeRay 1.7 for workers of a RayService, with Serve's health by HTTPS. The pod asks itself: nothing to verify.
READINESS: Manifest = {
    "exec": {
        "command": [
            "bash",
            "-c",
            "wget --tries 1 -T 2 -q -O- http://localhost:52365/api/local_raylet_healthz | grep success && "
            "wget --tries 1 -T 10 -q -O- --no-check-certificate https://localhost:8000/-/healthz | grep success",
        ]
    },
    "initialDelaySeconds": 10,
    "timeoutSeconds": 2,
    "periodSeconds": 5,
    "successThreshold": 1,
    "failureThreshold": 1,
}


def certificate(values: Values) -> list[Manifest]:
    """Of the server's Service, and of a port-forward's end."""
    if not values.tls.pods or values.tls.issuer is None or not values.has_ray_service:
        return []
    service = values.named("serve-svc")
    spec = {
        "secretName": values.named(SECRET),
        "duration": "8760h",
        "renewBefore": "2160h",  # longer than a pod lives
        "privateKey": {"algorithm": "ECDSA", "size": 256, "rotationPolicy": "Always"},
        "usages": ["server auth"],
        "dnsNames": [
            service,
            f"{service}.{values.namespace}",
            f"{service}.{values.namespace}.svc",
            f"{service}.{values.namespace}.svc.cluster.local",
            "localhost",
        ],
        "ipAddresses": ["127.0.0.1"],
        "issuerRef": {"group": "cert-manager.io", "kind": "ClusterIssuer", "name": values.tls.issuer},
    }
    return [
        {
            "apiVersion": "cert-manager.io/v1",
            "kind": "Certificate",
            "metadata": metadata(values, values.named(SECRET), ""),
            "spec": spec,
        }
    ]


def volume(values: Values) -> tuple[Manifest, Manifest]:
    """(volume, mount) of certificate and key."""
    return (
        {"name": "tls", "secret": {"secretName": values.named(SECRET), "defaultMode": 0o440}},
        {"name": "tls", "mountPath": TLS_FOLDER, "readOnly": True},
    )
