"""Rules for what a values file may add: TLS, sign-in, External Secrets, quota, alerts, logs; and for what AWS keeps."""

from serve_app.k8s.rules.options import aws, login, quota, secrets, sidecars, tls

__all__ = ["aws", "login", "quota", "secrets", "sidecars", "tls"]
