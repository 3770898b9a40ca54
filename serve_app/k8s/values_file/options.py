"""Fields of the values file that add to an installation: secrets, sign-in, TLS, quota, alerts.

Their objects are made in `serve_app/k8s/options/`.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from serve_app.fields import Frozen

HTTPS = r"^https://[A-Za-z0-9][-A-Za-z0-9.]*(:[0-9]+)?(/[^\s\"]*)?$"
# Suffixes of Secrets' names, and the keys in them; none: any, as environment variables.
SECRET_KEYS: dict[str, tuple[str, ...]] = {
    "keys": ("keys.yaml",),
    "redis": ("password",),
    "hub": ("token",),
    "vllm": ("api-key",),
    "kernels-redis": ("password",),
    "providers": (),
    "oidc": ("clientID", "clientSecret"),
    "alerts": ("url", "routing-key"),
    "pods-tls": ("tls.crt", "tls.key"),
}
Secret = Literal["keys", "redis", "hub", "vllm", "kernels-redis", "providers", "oidc", "alerts"]


class ExternalSecrets(Frozen):
    """Secrets that the External Secrets operator makes from a manager of secrets."""

    store: str = Field(min_length=1, description="name of a SecretStore")
    kind: Literal["ClusterSecretStore", "SecretStore"] = "ClusterSecretStore"
    path: str = Field(pattern=r"^[A-Za-z0-9][-A-Za-z0-9/_.]*$", description="before the name of each, as PATH/redis")
    secrets: tuple[Secret, ...] = Field(("keys", "redis"), min_length=1, description="that are there")
    refresh: str = Field("1h", pattern=r"^[1-9][0-9]*(s|m|h)$")


class Oidc(Frozen):
    """People sign in at the load balancer; programs with an API key go past it."""

    issuer: str = Field(pattern=HTTPS)
    authorization_endpoint: str = Field(pattern=HTTPS)
    token_endpoint: str = Field(pattern=HTTPS)
    user_info_endpoint: str = Field(pattern=HTTPS)
    scope: str = Field("openid email", pattern=r"^openid( [\w:.-]+)*$")
    session_s: int = Field(43200, ge=60, le=604800, description="after which people sign in again")


class Tls(Frozen):
    """From the load balancer to the server's pods."""

    pods: bool = Field(False, description="Serve speaks HTTPS alone, by the Secret NAME-pods-tls")
    issuer: str | None = Field(
        None, min_length=1, description="cert-manager's ClusterIssuer that makes the Secret; null: somebody else does"
    )


class Quota(Frozen):
    """Bounds of all pods of the namespace, in requests."""

    pods: int = Field(ge=1)
    cpus: int = Field(ge=1)
    memory_gib: int = Field(ge=1)
    gpus: int = Field(ge=0)


class Alerts(Frozen):
    """Where Alertmanager sends this namespace's alerts; the address or key is in the Secret NAME-alerts."""

    kind: Literal["slack", "pagerduty", "webhook"]
    channel: str | None = Field(None, pattern=r"^[#@][^\s]+$", description="of Slack")

    @model_validator(mode="after")
    def _has_channel(self) -> Alerts:
        if (self.kind == "slack") != (self.channel is not None):
            raise ValueError("channel: Slack needs one, as '#llm', and nothing else has one")
        return self

    @property
    def key(self) -> str:
        """Of the Secret."""
        return "routing-key" if self.kind == "pagerduty" else "url"
