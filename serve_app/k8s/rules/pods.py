"""Rules for all pod templates."""

from __future__ import annotations

import re
from collections.abc import Sequence

from serve_app.k8s.pods import CAPABILITIES_REASON, GPU_RESOURCE, ROOT_REASON
from serve_app.k8s.rules.manifests import Found, Manifest, limit, ray_clusters, rule, templates
from serve_app.k8s.write_back import quantity

DIGEST = re.compile(r"@sha256:[0-9a-f]{64}$")
# Full versions, dates or commits. Shorter tags (7, latest) move.
FIXED_TAG = re.compile(r"(?!.*(latest|nightly|stable|edge)).*(\d+\.\d+\.\d+|\d{8}|\b[0-9a-f]{7,40}\b).*")
OPERATORS, EFFECTS = ("Exists", "Equal"), ("NoSchedule", "PreferNoSchedule", "NoExecute")


@rule("gpu-request-limit")
def gpu_request_limit(manifests: Sequence[Manifest]) -> Found:
    for template in templates(manifests):
        for container in template.containers:
            resources = container.get("resources") or {}
            asked = (resources.get("requests") or {}).get(GPU_RESOURCE)
            if asked is not None and float(quantity(asked)) != limit(container, GPU_RESOURCE):
                yield template.owner, f"{container['name']}: request and limit of {GPU_RESOURCE} differ"


@rule("request-above-limit")
def request_above_limit(manifests: Sequence[Manifest]) -> Found:
    for template in templates(manifests):
        for container in template.containers:
            resources = container.get("resources") or {}
            for name, asked in (resources.get("requests") or {}).items():
                most = (resources.get("limits") or {}).get(name)
                if name != GPU_RESOURCE and most is not None and quantity(asked) > quantity(most):
                    yield template.owner, f"{container['name']}: request of {name} {asked} is above its limit {most}"


@rule("resources")
def resources_named(manifests: Sequence[Manifest]) -> Found:
    for template in templates(manifests):
        for container in template.containers:
            limits = (container.get("resources") or {}).get("limits") or {}
            if "memory" not in limits:
                yield template.owner, f"{container['name']}: no limit of memory"


@rule("gpu-toleration")
def gpu_toleration(manifests: Sequence[Manifest]) -> Found:
    for template in templates(manifests):
        tolerations = template.spec.get("tolerations") or []
        asks = any(limit(container, GPU_RESOURCE) for container in template.containers)
        if asks and not any(_tolerates(entry) for entry in tolerations):
            yield template.owner, f"asks for a GPU and does not tolerate the taint {GPU_RESOURCE}=true:NoSchedule"
        if any("key" not in entry and entry.get("operator") == "Exists" for entry in tolerations):
            yield template.owner, "tolerates every taint, those of nodes that fail too; name the key"


def _tolerates(entry: Manifest) -> bool:
    """The taint of GPU nodes (node_pools.py)."""
    value = entry.get("operator", "Equal") != "Equal" or entry.get("value") == "true"
    return entry.get("key") == GPU_RESOURCE and value and entry.get("effect") not in EFFECTS[1:]


@rule("toleration-form")
def toleration_form(manifests: Sequence[Manifest]) -> Found:
    for template in templates(manifests):
        for entry in template.spec.get("tolerations") or []:
            operator, effect = entry.get("operator", "Equal"), entry.get("effect", "")
            if operator not in OPERATORS:
                yield template.owner, f"toleration: operator '{operator}' is not one of {', '.join(OPERATORS)}"
            elif operator == "Exists" and "value" in entry:
                yield template.owner, "toleration: operator Exists takes no value"
            if effect and effect not in EFFECTS:
                yield template.owner, f"toleration: effect '{effect}' is not one of {', '.join(EFFECTS)}"
            if "tolerationSeconds" in entry and effect != "NoExecute":
                yield template.owner, "toleration: tolerationSeconds goes with the effect NoExecute alone"


@rule("mounts")
def mounts(manifests: Sequence[Manifest]) -> Found:
    for template in templates(manifests):
        declared = {volume["name"] for volume in template.spec.get("volumes") or []}
        claims = (template.owner.get("spec") or {}).get("volumeClaimTemplates") or []
        declared |= {claim["metadata"]["name"] for claim in claims}
        for container in template.containers:
            for mount in container.get("volumeMounts") or []:
                if mount["name"] not in declared:
                    yield template.owner, f"{container['name']}: there is no volume '{mount['name']}'"


@rule("security")
def security(manifests: Sequence[Manifest]) -> Found:
    for template in templates(manifests):
        pod = template.spec.get("securityContext") or {}
        if not pod.get("runAsNonRoot") and ROOT_REASON not in (template.metadata.get("annotations") or {}):
            yield template.owner, f"runs as root: set runAsNonRoot, or give a reason by the annotation {ROOT_REASON}"
        contexts = [pod, *((container.get("securityContext") or {}) for container in template.containers)]
        if ROOT_REASON not in (template.metadata.get("annotations") or {}) and any(
            context.get("runAsUser") == 0 or context.get("runAsNonRoot") is False for context in contexts
        ):
            yield template.owner, "runs as user 0, or allows it: with runAsNonRoot the kubelet does not start it"
        for field in ("hostNetwork", "hostPID", "hostIPC"):
            if template.spec.get(field):
                yield template.owner, f"{field} is set"
        if any("hostPath" in volume for volume in template.spec.get("volumes") or []):
            yield template.owner, "mounts a folder of its node (hostPath)"
        for container in template.containers:
            own = container.get("securityContext") or {}
            if own.get("privileged"):
                yield template.owner, f"{container['name']} is privileged"
            if own.get("allowPrivilegeEscalation") is not False:
                yield template.owner, f"{container['name']}: allowPrivilegeEscalation is not false"
            if not own.get("readOnlyRootFilesystem"):
                yield template.owner, f"{container['name']}: readOnlyRootFilesystem is not true"
            capabilities = own.get("capabilities") or {}
            if capabilities.get("drop") != ["ALL"]:
                yield template.owner, f"{container['name']}: not all capabilities are dropped"
            if capabilities.get("add") and CAPABILITIES_REASON not in (template.metadata.get("annotations") or {}):
                added = ", ".join(capabilities["add"])
                yield template.owner, f"{container['name']}: adds {added} without the annotation {CAPABILITIES_REASON}"
            for port in container.get("ports") or []:
                if port.get("hostPort"):
                    yield template.owner, f"{container['name']}: hostPort {port['hostPort']} is open on the node"


@rule("image-tag")
def image_tag(manifests: Sequence[Manifest]) -> Found:
    for template in templates(manifests):
        for container in template.containers:
            image = container.get("image", "")
            if not _is_pinned(image):
                yield template.owner, f"{container['name']}: image '{image}' has no fixed tag"
    for owner, cluster in ray_clusters(manifests):
        image = (cluster.get("autoscalerOptions") or {}).get("image")
        if image and not _is_pinned(image):
            yield owner, f"autoscaler: image '{image}' has no fixed tag"


def _is_pinned(image: str) -> bool:
    tag = image.rpartition("/")[2].partition(":")[2]
    return bool(DIGEST.search(image) if "@" in image else FIXED_TAG.fullmatch(tag))


@rule("service-links")
def service_links(manifests: Sequence[Manifest]) -> Found:
    for template in templates(manifests):
        if template.spec.get("enableServiceLinks") is not False:
            yield template.owner, "enableServiceLinks is not false: a Service named vllm would set VLLM_PORT to a URL"


@rule("account-token")
def account_token(manifests: Sequence[Manifest]) -> Found:
    scaled = {id(owner) for owner, cluster in ray_clusters(manifests) if cluster.get("enableInTreeAutoscaling")}
    for template in templates(manifests):
        token = template.spec.get("automountServiceAccountToken")
        if template.place == "head" and id(template.owner) in scaled:
            if not token:
                yield template.owner, "the head's autoscaler has no token: set automountServiceAccountToken"
        elif token is not False:
            yield template.owner, "automountServiceAccountToken is not false, and nothing here asks the API server"


@rule("shared-memory")
def shared_memory(manifests: Sequence[Manifest]) -> Found:
    for template in templates(manifests):
        if template.place or not limit(template.main, GPU_RESOURCE):
            continue  # KubeRay adds its own
        in_memory = {
            volume["name"]
            for volume in template.spec.get("volumes") or []
            if (volume.get("emptyDir") or {}).get("medium") == "Memory"
        }
        paths = {mount["mountPath"] for mount in template.main.get("volumeMounts") or [] if mount["name"] in in_memory}
        if "/dev/shm" not in paths:
            yield template.owner, "no /dev/shm in memory: the container's 64 MiB are too little for vLLM's ranks"


@rule("probes")
def probes(manifests: Sequence[Manifest]) -> Found:
    for template in templates(manifests):
        if template.owner.get("kind") not in ("Deployment", "StatefulSet") or not template.main.get("ports"):
            continue  # no traffic, or KubeRay adds its own
        for probe in ("readinessProbe", "livenessProbe"):
            if probe not in template.main:
                yield template.owner, f"{template.main['name']} has no {probe}"
        slow = limit(template.main, GPU_RESOURCE) and "livenessProbe" in template.main
        if slow and "startupProbe" not in template.main:
            yield template.owner, f"{template.main['name']} has no startupProbe: it is killed while it loads its model"


@rule("spread")
def spread(manifests: Sequence[Manifest]) -> Found:
    for template in templates(manifests):
        for constraint in template.spec.get("topologySpreadConstraints") or []:
            wanted = (constraint.get("labelSelector") or {}).get("matchLabels") or {}
            if not wanted or any(template.labels.get(key) != value for key, value in wanted.items()):
                yield template.owner, "topologySpreadConstraints select other pods than these"
