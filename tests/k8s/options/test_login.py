"""People sign in at the load balancer; programs bring a key."""

from __future__ import annotations

import json

from tests.k8s.options.kit import all_options, of_kind
from tests.k8s.sets import OPTIONS

PREFIX = "alb.ingress.kubernetes.io/"


def test_requests_with_a_key_go_past_the_sign_in_and_all_others_meet_it() -> None:
    rules = sorted(
        (one["metadata"]["annotations"] for one in of_kind(all_options(), "Ingress").values()),
        key=lambda annotations: int(annotations[f"{PREFIX}group.order"]),
    )
    assert len({annotations[f"{PREFIX}group.name"] for annotations in rules}) == 1
    *keys, people = rules
    headers = [json.loads(one[f"{PREFIX}conditions.all-serve-svc"])[0]["httpHeaderConfig"] for one in keys]
    assert [(one["httpHeaderName"], one["values"]) for one in headers] == [
        ("Authorization", ["Bearer *"]),
        ("x-api-key", ["*"]),
    ]
    assert not any(f"{PREFIX}auth-type" in one for one in keys)
    assert people[f"{PREFIX}auth-type"] == "oidc"
    assert people[f"{PREFIX}auth-on-unauthenticated-request"] == "authenticate"
    assert f"{PREFIX}conditions.all-serve-svc" not in people


def test_the_provider_is_the_values_and_its_secret_is_named_only() -> None:
    annotations = of_kind(all_options(), "Ingress")["all-login"]["metadata"]["annotations"]
    provider = json.loads(annotations[f"{PREFIX}auth-idp-oidc"])
    assert provider["tokenEndpoint"] == OPTIONS["ingress"]["oidc"]["token_endpoint"]
    assert provider["secretName"] == "all-oidc"
    assert provider.keys() & {"clientId", "clientSecret", "clientID"} == set()
    (secret,) = [one for name, one in of_kind(all_options(), "ExternalSecret").items() if name == "all-oidc"]
    assert {entry["secretKey"] for entry in secret["spec"]["data"]} == {"clientID", "clientSecret"}


def test_the_pods_still_ask_for_keys() -> None:
    config = of_kind(all_options(), "RayService")["all"]["spec"]["serveConfigV2"]
    assert config.count("/etc/serve-app/keys/keys.yaml") == 4
