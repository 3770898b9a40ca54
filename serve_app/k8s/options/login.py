"""People sign in at the ALB by OpenID Connect; a request with a key in its header goes on to the pods, which check it.

Three Ingresses make one load balancer (a group), those for keys first.
"""

from __future__ import annotations

import copy
import json

from serve_app.k8s.pods import Manifest
from serve_app.k8s.values import Values
from serve_app.k8s.values_file.options import Oidc

# Headers with a key, by what follows the Ingress' name. The pods know both.
KEYS = {"": ("Authorization", "Bearer *"), "api-key": ("x-api-key", "*")}
PREFIX = "alb.ingress.kubernetes.io"
SECRET = "oidc"


def with_login(values: Values, ingress: Manifest, oidc: Oidc) -> list[Manifest]:
    """Ingresses for requests with a key, and one for all others."""
    keys = [_of_group(values, ingress, order, name) for order, name in enumerate(KEYS, 10)]
    for one, (header, value) in zip(keys, KEYS.values(), strict=True):
        condition = {"field": "http-header", "httpHeaderConfig": {"httpHeaderName": header, "values": [value]}}
        name = f"{PREFIX}/conditions.{values.named('serve-svc')}"
        one["metadata"]["annotations"][name] = json.dumps([condition])
    people = _of_group(values, ingress, 20, "login")
    provider = {
        "issuer": oidc.issuer,
        "authorizationEndpoint": oidc.authorization_endpoint,
        "tokenEndpoint": oidc.token_endpoint,
        "userInfoEndpoint": oidc.user_info_endpoint,
        "secretName": values.named(SECRET),
    }
    people["metadata"]["annotations"] |= {
        f"{PREFIX}/auth-type": "oidc",
        f"{PREFIX}/auth-idp-oidc": json.dumps(provider),
        f"{PREFIX}/auth-scope": oidc.scope,
        f"{PREFIX}/auth-session-timeout": str(oidc.session_s),
        f"{PREFIX}/auth-on-unauthenticated-request": "authenticate",
    }
    return [*keys, people]


def _of_group(values: Values, ingress: Manifest, order: int, name: str) -> Manifest:
    """A copy with a place in the load balancer's order of rules."""
    found = copy.deepcopy(ingress)
    found["metadata"]["name"] = values.named(name) if name else values.name
    found["metadata"]["annotations"] |= {
        f"{PREFIX}/group.name": values.cluster_named("alb"),
        f"{PREFIX}/group.order": str(order),
    }
    return found
