"""People sign in at the ALB by OpenID Connect; a request with a key in its header goes on to the pods, which check it.

Two Ingresses make one load balancer (a group), the one for keys first.
"""

from __future__ import annotations

import copy
import json

from serve_app.k8s.option_values import Oidc
from serve_app.k8s.pods import Manifest
from serve_app.k8s.values import Values

PREFIX = "alb.ingress.kubernetes.io"
SECRET = "oidc"
WITH_KEY = {
    "field": "http-header",
    "httpHeaderConfig": {"httpHeaderName": "Authorization", "values": ["Bearer *"]},
}


def with_login(values: Values, ingress: Manifest, oidc: Oidc) -> list[Manifest]:
    """The Ingress for requests with a key, and one for all others."""
    service = values.named("serve-svc")
    keys, people = ingress, copy.deepcopy(ingress)
    people["metadata"]["name"] = values.named("login")
    for order, one in ((10, keys), (20, people)):
        one["metadata"]["annotations"] |= {
            f"{PREFIX}/group.name": f"{values.namespace}.{values.name}",
            f"{PREFIX}/group.order": str(order),
        }
    keys["metadata"]["annotations"][f"{PREFIX}/conditions.{service}"] = json.dumps([WITH_KEY])
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
    return [keys, people]
