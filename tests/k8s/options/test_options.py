"""All options together keep every rule and schema, and none of them changes what does not ask for it."""

from __future__ import annotations

from typing import Any

import pytest

from serve_app.errors import BadSettings
from serve_app.k8s.rules.manifests import templates
from tests.k8s import checks
from tests.k8s.options.kit import all_options, installation, of_kind, problems
from tests.k8s.sets import OPTIONS

OIDC = OPTIONS["ingress"]["oidc"]
NONE = ("ExternalSecret", "ResourceQuota", "LimitRange", "Certificate", "AlertmanagerConfig")


def test_all_of_them_together_pass_every_check_by_schemas_of_theirs() -> None:
    found = all_options()
    assert problems(found) == []
    assert [checks.name(manifest) for manifest in found if not checks.has_schema(manifest)] == []
    assert {manifest["kind"] for manifest in found} >= set(NONE)
    assert [place for manifest in found for place in checks.applied_again(manifest)] == []


def test_by_default_there_is_none() -> None:
    found = installation()
    assert {manifest["kind"] for manifest in found} & set(NONE) == set()
    assert len(of_kind(found, "Ingress")) == 1
    assert [t for t in templates(found) if t.spec.get("initContainers")] == []
    assert "ssl_certfile" not in of_kind(found, "RayService")["serve-app"]["spec"]["serveConfigV2"]


@pytest.mark.parametrize(
    ("mine", "problem"),
    [
        ({"ingress": {"kind": "none", "oidc": OIDC}}, "ingress: oidc: an ALB signs people in, and kind is none"),
        ({"ingress": {"oidc": {**OIDC, "issuer": "http://a"}}}, r"ingress\.oidc\.issuer: String should match pattern"),
        ({"ingress": {"oidc": {"issuer": "https://a"}}}, r"ingress\.oidc\.authorization_endpoint: Field required"),
        ({"ingress": {"kind": "gateway"}, "tls": {"pods": True}}, r"tls\.pods: goes with ingress\.kind alb or none"),
        ({"tls": {"pod": True}}, r"tls\.pod: Extra inputs are not permitted; did you mean 'pods'"),
        ({"external_secrets": {"store": "aws", "path": "a", "secrets": ["key"]}}, r"external_secrets\.secrets\.0"),
        ({"external_secrets": {"store": "aws", "path": "/a"}}, r"external_secrets\.path: String should match"),
        (
            {"external_secrets": {"store": "aws", "path": "a", "secrets": ["keys"]}},
            "no ExternalSecret makes the Secret 'serve-app-redis': add it to external_secrets.secrets",
        ),
        ({"quota": {"pods": 100, "cpus": 500, "memory_gib": 2000}}, r"quota\.gpus: Field required"),
        (
            {"quota": {"pods": 100, "cpus": 500, "memory_gib": 2000, "gpus": 16}},
            r"requests\.nvidia\.com/gpu is 16, and all that may run at once asks for 32",
        ),
        ({"alerts": {"kind": "webhook"}}, "alerts: needs monitoring: true"),
        ({"monitoring": True, "alerts": {"kind": "slack"}}, "alerts: channel: Slack needs one"),
        ({"monitoring": True, "alerts": {"kind": "webhook", "channel": "#a"}}, "alerts: channel: Slack needs one"),
        ({"monitoring": True, "alerts": {"kind": "mail"}}, r"alerts\.kind: Input should be 'slack'"),
        ({"store_role": "llm-store"}, "store_role: String should match pattern"),
    ],
)
def test_what_is_wrong_is_said_by_its_field(mine: dict[str, Any], problem: str) -> None:
    with pytest.raises(BadSettings, match=problem):
        installation(**mine)


def test_the_stores_role_is_the_stores_account_alone() -> None:
    accounts = of_kind(all_options(), "ServiceAccount")
    role = "eks.amazonaws.com/role-arn"
    assert [name for name, one in accounts.items() if role in one["metadata"]["annotations"]] == ["all-store"]
