"""Rules of pod templates, wherever they are."""

from __future__ import annotations

import re
from collections.abc import Sequence

from serve_app.k8s.pods import GPU_RESOURCE
from serve_app.k8s.rules.manifests import Found, Manifest, amount, limit, ray_clusters, rule, templates, variables

SECRET_NAME = re.compile(r"(KEY|TOKEN|PASSWORD|SECRET)$")
TAGGED = re.compile(r"(:[\w.-]+|@sha256:[0-9a-f]{64})$")
OPERATORS = ("Exists", "Equal")
# What a pod may not do without saying why.
ROOT_REASON = "serve-app/root-because"


@rule("gpu-request-limit")
def gpu_request_limit(manifests: Sequence[Manifest]) -> Found:
    for template in templates(manifests):
        for container in template.containers:
            resources = container.get("resources") or {}
            asked = (resources.get("requests") or {}).get(GPU_RESOURCE)
            if asked is not None and amount(asked) != limit(container, GPU_RESOURCE):
                yield template.owner, f"{container['name']}: request and limit of {GPU_RESOURCE} differ"


@rule("request-above-limit")
def request_above_limit(manifests: Sequence[Manifest]) -> Found:
    for template in templates(manifests):
        for container in template.containers:
            resources = container.get("resources") or {}
            for name, asked in (resources.get("requests") or {}).items():
                most = (resources.get("limits") or {}).get(name)
                if name != GPU_RESOURCE and most is not None and amount(asked) > amount(most):
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
        tolerated = {entry.get("key") for entry in template.spec.get("tolerations") or []}
        if any(limit(container, GPU_RESOURCE) for container in template.containers) and GPU_RESOURCE not in tolerated:
            yield template.owner, f"asks for a GPU and does not tolerate the taint {GPU_RESOURCE}"


@rule("toleration-form")
def toleration_form(manifests: Sequence[Manifest]) -> Found:
    for template in templates(manifests):
        for entry in template.spec.get("tolerations") or []:
            operator = entry.get("operator", "Equal")
            if operator not in OPERATORS:
                yield template.owner, f"toleration: operator '{operator}' is not one of {', '.join(OPERATORS)}"
            elif operator == "Exists" and "value" in entry:
                yield template.owner, "toleration: operator Exists takes no value"


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
            if (own.get("capabilities") or {}).get("drop") != ["ALL"]:
                yield template.owner, f"{container['name']}: not all capabilities are dropped"


@rule("secret-inline")
def secret_inline(manifests: Sequence[Manifest]) -> Found:
    for template in templates(manifests):
        for container in template.containers:
            for name, value in variables(container).items():
                if value and SECRET_NAME.search(name):
                    yield template.owner, f"{container['name']}: {name} is written out; take it from a Secret"
    for manifest in manifests:
        if manifest.get("kind") == "Secret":
            yield manifest, "a Secret is committed; make it in the cluster and only name it"


@rule("image-tag")
def image_tag(manifests: Sequence[Manifest]) -> Found:
    for template in templates(manifests):
        for container in template.containers:
            image = container.get("image", "")
            if not TAGGED.search(image.rpartition("/")[2]) or image.endswith(":latest"):
                yield template.owner, f"{container['name']}: image '{image}' has no fixed tag"


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
            continue  # nothing is sent to it, or KubeRay adds its own
        for probe in ("readinessProbe", "livenessProbe"):
            if probe not in template.main:
                yield template.owner, f"{template.main['name']} has no {probe}"


@rule("spread")
def spread(manifests: Sequence[Manifest]) -> Found:
    for template in templates(manifests):
        for constraint in template.spec.get("topologySpreadConstraints") or []:
            wanted = (constraint.get("labelSelector") or {}).get("matchLabels") or {}
            if not wanted or any(template.labels.get(key) != value for key, value in wanted.items()):
                yield template.owner, "topologySpreadConstraints select other pods than these"
