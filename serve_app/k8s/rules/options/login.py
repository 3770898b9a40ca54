"""Rules for people's sign-in at an ALB."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence

from serve_app.k8s.rules.manifests import Found, Manifest, of_kind, rule

PREFIX = "alb.ingress.kubernetes.io/"
ENDPOINTS = ("issuer", "authorizationEndpoint", "tokenEndpoint", "userInfoEndpoint")


@rule("login")
def login(manifests: Sequence[Manifest]) -> Found:
    for ingress in of_kind(manifests, "Ingress"):
        if _annotation(ingress, "auth-type", "none") == "none":
            continue
        for problem in _provider(ingress, manifests) if _annotation(ingress, "auth-type") == "oidc" else ():
            yield ingress, f"auth-idp-oidc: {problem}"
        if _annotation(ingress, "auth-on-unauthenticated-request", "authenticate") == "allow":
            yield ingress, "lets those pass who have not signed in"
        if not any(_takes_keys(other, ingress) for other in of_kind(manifests, "Ingress")):
            yield ingress, "no Ingress of its group takes requests with a key before it: programs cannot sign in"


def _annotation(ingress: Manifest, name: str, default: str = "") -> str:
    return str((ingress["metadata"].get("annotations") or {}).get(PREFIX + name, default))


def _provider(ingress: Manifest, manifests: Sequence[Manifest]) -> Iterator[str]:
    try:
        provider = json.loads(_annotation(ingress, "auth-idp-oidc", "null"))
    except ValueError:
        provider = None
    if not isinstance(provider, dict):
        yield "is no JSON object"
        return
    for name in ENDPOINTS:
        if not str(provider.get(name, "")).startswith("https://"):
            yield f"{name} is no https:// address"
    ours = {(m["metadata"].get("labels") or {}).get("app.kubernetes.io/instance") for m in manifests}
    if provider.get("secretName") not in {f"{name}-oidc" for name in ours}:
        yield f"there is no Secret '{provider.get('secretName')}'"


def _takes_keys(one: Manifest, login: Manifest) -> bool:
    group = _annotation(one, "group.name")
    conditions = [value for key, value in (one["metadata"].get("annotations") or {}).items() if "/conditions." in key]
    before = int(_annotation(one, "group.order", "0")) < int(_annotation(login, "group.order", "0"))
    open_ = _annotation(one, "auth-type", "none") == "none"
    return bool(group) and group == _annotation(login, "group.name") and before and open_ and bool(conditions)


@rule("login-keys")
def keys_by_header(manifests: Sequence[Manifest]) -> Found:
    """Beside a sign-in, an Ingress without a condition would let everybody past it."""
    groups = {_annotation(m, "group.name") for m in of_kind(manifests, "Ingress") if _annotation(m, "auth-type")} - {""}
    for ingress in of_kind(manifests, "Ingress"):
        if _annotation(ingress, "group.name") in groups and not _annotation(ingress, "auth-type"):
            conditions = [k for k in ingress["metadata"]["annotations"] if k.startswith(f"{PREFIX}conditions.")]
            if not any("http-header" in ingress["metadata"]["annotations"][name] for name in conditions):
                yield ingress, "is of a group with a sign-in and asks for no header: everybody gets past"
