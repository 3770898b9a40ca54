"""Rules for quotas: what is over one is refused without a word to whoever waits for the pod."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction

from serve_app.k8s.rules.manifests import Found, Manifest, Template, of_kind, ray_clusters, rule, templates
from serve_app.k8s.write_back import canonical_quantity, quantity


@rule("quota-defaults")
def quota_defaults(manifests: Sequence[Manifest]) -> Found:
    for quota in of_kind(manifests, "ResourceQuota"):
        counted = any(name.startswith(("requests.", "limits.")) for name in quota["spec"].get("hard") or {})
        if counted and not any(of_kind(manifests, "LimitRange")):
            yield quota, "without a LimitRange a container that names no requests is refused"


@rule("quota-room", whole=True)
def quota_room(manifests: Sequence[Manifest]) -> Found:
    """Room for all that may run at once: the most replicas, and a server's upgrade beside itself."""
    for quota in of_kind(manifests, "ResourceQuota"):
        hard = quota["spec"].get("hard") or {}
        needed: dict[str, Fraction] = {}
        for template in templates(manifests):
            for name, amount in _requests(template).items():
                needed[name] = needed.get(name, Fraction(0)) + _most(template) * amount
        for name, amount in hard.items():
            if name in needed and needed[name] > quantity(amount):
                most = canonical_quantity(amount)
                yield quota, f"{name} is {most}, and all that may run at once asks for {float(needed[name]):g}"


def _requests(template: Template) -> dict[str, Fraction]:
    found = {"pods": Fraction(1)}
    lasting = [one for one in template.spec.get("initContainers") or [] if one.get("restartPolicy") == "Always"]
    resources = [one.get("resources") or {} for one in (*lasting, *(template.spec.get("containers") or []))]
    if template.place == "head":
        (cluster,) = (cluster for _, cluster in ray_clusters([template.owner]))
        resources.append((cluster.get("autoscalerOptions") or {}).get("resources") or {})
    for resource in resources:
        amounts = {**(resource.get("limits") or {}), **(resource.get("requests") or {})}
        for name, amount in amounts.items():
            found[f"requests.{name}"] = found.get(f"requests.{name}", Fraction(0)) + quantity(amount)
    return found


def _most(template: Template) -> int:
    """Pods of a template at once."""
    spec = template.owner.get("spec") or {}
    if template.place:
        count = 1 if template.place == "head" else int(template.group.get("maxReplicas", 1))
        return 2 * count if (spec.get("upgradeStrategy") or {}).get("type", "NewCluster") == "NewCluster" and (
            template.owner["kind"] == "RayService") else count  # fmt: skip
    return int(spec.get("replicas", 1)) if template.owner["kind"] in ("Deployment", "StatefulSet") else 1
