"""KubeRay's own validation: what the CRD accepts and the operator refuses.

Mirrors `ray-operator/controllers/ray/utils/validation.go` of KubeRay 1.7.0 with default feature gates. The operator
only writes an event after `kubectl apply` has succeeded.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any

import yaml

from serve_app.k8s.rules.form import LABEL_VALUE
from serve_app.k8s.rules.manifests import Found, Manifest, of_kind, ray_clusters, rule, variables

START_RESOURCES = ("num-cpus", "num-gpus", "memory", "resources")
AUTOSCALER_V2 = "RAY_enable_autoscaler_v2"
PRIORITY_SINCE, AUTOSCALER_V2_SINCE = (2, 56), (2, 47)
DNS_1035 = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")
LABEL_KEY = re.compile(r"([a-z0-9]([-a-z0-9.]*[a-z0-9])?/)?[A-Za-z0-9]([-\w.]{0,61}[A-Za-z0-9])?")
DURATION = re.compile(r"\+?([1-9]\d*|(\d+(\.\d*)?(ns|us|ms|s|m|h))+)")


@rule("operator")
def operator(manifests: Sequence[Manifest]) -> Found:
    for owner in of_kind(manifests, "RayService", "RayJob", "RayCluster"):
        if not DNS_1035.fullmatch(name := owner["metadata"]["name"]):
            yield owner, f"the name '{name}' is no DNS label: small letters, digits and hyphens, a letter first"
    for owner, cluster in ray_clusters(manifests):
        annotations = owner["metadata"].get("annotations") or {}
        for message in (*_groups(cluster), *_redis(cluster, annotations), *_autoscaler(cluster)):
            yield owner, message
        if owner["kind"] != "RayCluster" and (cluster.get("upgradeStrategy") or {}).get("type"):
            yield owner, "upgradeStrategy of the cluster is for RayClusters alone"
    for service in of_kind(manifests, "RayService"):
        for message in _service(service["spec"], service["metadata"].get("annotations") or {}):
            yield service, message
    for job in of_kind(manifests, "RayJob"):
        for message in _job(job["spec"]):
            yield job, message


def _groups(cluster: Manifest) -> Iterator[str]:
    scaled = cluster.get("enableInTreeAutoscaling")
    groups = [("head", cluster.get("headGroupSpec") or {})]
    groups += [(group.get("groupName", "?"), group) for group in cluster.get("workerGroupSpecs") or []]
    for name, group in groups:
        start = group.get("rayStartParams") or {}
        if not ((group.get("template") or {}).get("spec") or {}).get("containers"):
            yield f"group {name} has no container"
        if group.get("resources") and any(start.get(key) for key in START_RESOURCES):
            yield f"group {name}: resources stand beside rayStartParams; the operator takes one of them"
        if "labels" in start:
            yield f"group {name}: rayStartParams.labels is not supported; use the group's labels"
        for key, value in (group.get("labels") or {}).items():
            if not LABEL_KEY.fullmatch(key) or not LABEL_VALUE.fullmatch(str(value)):
                yield f"group {name}: '{key}: {value}' is no label"
        if name == "head":
            continue
        if not scaled and (group.get("minReplicas") is None or group.get("maxReplicas") is None):
            yield f"group {name}: without autoscaling it needs minReplicas and maxReplicas"
        for field in ("minReplicas", "maxReplicas", "idleTimeoutSeconds"):
            if (group.get(field) or 0) < 0:
                yield f"group {name}: {field} is negative"
        if group.get("suspend"):
            yield f"group {name}: suspend is not supported with autoscaling" if scaled else f"group {name} is suspended"
        v2 = scaled and _is_v2(cluster)
        if group.get("idleTimeoutSeconds") is not None and not v2:
            yield f"group {name}: idleTimeoutSeconds needs autoscalerOptions.version v2"
        if group.get("priority") and (not v2 or _version(cluster) < PRIORITY_SINCE):
            yield f"group {name}: priority needs autoscalerOptions.version v2 and Ray 2.56"


def _is_v2(cluster: Manifest) -> bool:
    version = (cluster.get("autoscalerOptions") or {}).get("version")
    return bool(version == "v2" if version else _version(cluster) >= AUTOSCALER_V2_SINCE)


def _version(cluster: Manifest) -> tuple[int, ...]:
    parts = str(cluster.get("rayVersion") or "0").split(".")[:2]
    return tuple(int(part) if part.isdigit() else 0 for part in parts)


def _head(cluster: Manifest) -> Manifest:
    spec = ((cluster.get("headGroupSpec") or {}).get("template") or {}).get("spec") or {}
    return (spec.get("containers") or [{}])[0]  # type: ignore[no-any-return]


def _redis(cluster: Manifest, annotations: dict[str, str]) -> Iterator[str]:
    found, start = variables(_head(cluster)), (cluster.get("headGroupSpec") or {}).get("rayStartParams") or {}
    options = cluster.get("gcsFaultToleranceOptions")
    if options is None:
        if "RAY_REDIS_ADDRESS" in found and "ray.io/ft-enabled" not in annotations:
            yield "RAY_REDIS_ADDRESS is set without gcsFaultToleranceOptions"
    else:
        if annotations.get("ray.io/external-storage-namespace"):
            yield "gcsFaultToleranceOptions and the annotation ray.io/external-storage-namespace exclude each other"
        if options.get("backend") == "rocksdb":
            yield "gcsFaultToleranceOptions.backend rocksdb is behind a feature gate that is off"
        elif options.get("storage"):
            yield "gcsFaultToleranceOptions.storage is for the backend rocksdb alone"
    if start.get("redis-username") or "REDIS_USERNAME" in found:
        yield "the user of Redis belongs in gcsFaultToleranceOptions.redisUsername"


def _autoscaler(cluster: Manifest) -> Iterator[str]:
    options, found = cluster.get("autoscalerOptions") or {}, variables(_head(cluster))
    if cluster.get("enableInTreeAutoscaling"):
        if options.get("version") and AUTOSCALER_V2 in found:
            yield f"autoscalerOptions.version and the head's variable {AUTOSCALER_V2} exclude each other"
    elif found.get(AUTOSCALER_V2) in ("1", "true"):
        yield f"{AUTOSCALER_V2} needs enableInTreeAutoscaling"
    if (options.get("idleTimeoutSeconds") or 0) < 0:
        yield "autoscalerOptions.idleTimeoutSeconds is negative"
    if "KUBERAY_GEN_AUTOSCALER_START_CMD" in variables(options):
        yield "autoscalerOptions.env: KUBERAY_GEN_AUTOSCALER_START_CMD is the operator's"


def _service(spec: Manifest, annotations: dict[str, str]) -> Iterator[str]:
    head = (spec.get("rayClusterConfig") or {}).get("headGroupSpec") or {}
    if ((head.get("headService") or {}).get("metadata") or {}).get("name"):
        yield "headGroupSpec.headService.metadata.name must not be set: each cluster has its own"
    if (spec.get("rayClusterDeletionDelaySeconds") or 0) < 0:
        yield "rayClusterDeletionDelaySeconds is negative"
    if spec.get("suspend"):
        yield "suspend: no cluster is made"
    timeout = annotations.get("ray.io/initializing-timeout")
    if timeout is not None and (not DURATION.fullmatch(timeout) or not re.search(r"[1-9]", timeout)):
        yield f"the annotation ray.io/initializing-timeout '{timeout}' is no duration, as 45m, and no seconds"
    strategy = spec.get("upgradeStrategy") or {}
    if strategy.get("type") == "NewClusterWithIncrementalUpgrade":
        options = strategy.get("clusterUpgradeOptions") or {"intervalSeconds": 1}  # another rule covers none
        for field in ("maxSurgePercent", "stepSizePercent"):
            if not 0 <= options.get(field, 100) <= 100:
                yield f"clusterUpgradeOptions.{field} is not between 0 and 100"
        if (options.get("intervalSeconds") or 0) <= 0:
            yield "clusterUpgradeOptions.intervalSeconds is to be above 0"


def _job(spec: Manifest) -> Iterator[str]:
    ends, mode = spec.get("shutdownAfterJobFinishes"), spec.get("submissionMode", "K8sJobMode")
    selector, backoff = spec.get("clusterSelector") or {}, spec.get("backoffLimit") or 0
    if spec.get("suspend") and (not ends or selector):
        yield "suspend needs shutdownAfterJobFinishes, and a cluster of its own"
    if (spec.get("ttlSecondsAfterFinished") or 0) > 0 and not ends:
        yield "ttlSecondsAfterFinished needs shutdownAfterJobFinishes"
    for field, least in (("ttlSecondsAfterFinished", 0), ("backoffLimit", 0), ("activeDeadlineSeconds", 1),
                         ("preRunningDeadlineSeconds", 1)):  # fmt: skip
        if spec.get(field) is not None and spec[field] < least:
            yield f"{field} is below {least}"
    if not selector and not spec.get("rayClusterSpec"):
        yield "has neither rayClusterSpec nor clusterSelector"
    if selector and (backoff or mode == "SidecarMode"):
        yield "clusterSelector goes with neither backoffLimit nor SidecarMode"
    if mode == "InteractiveMode" and backoff:
        yield "backoffLimit does not go with InteractiveMode"
    if mode == "SidecarMode" and (spec.get("submitterPodTemplate") or spec.get("submitterConfig")):
        yield "SidecarMode has no submitter of its own"
    restart = ((spec.get("submitterPodTemplate") or {}).get("spec") or {}).get("restartPolicy", "Never")
    if restart not in ("Never", "OnFailure"):
        yield f"the submitter's restartPolicy is {restart}; of a Job it is Never or OnFailure"
    strategy = spec.get("deletionStrategy")
    if strategy is not None:
        yield from _deletion(strategy, ends=bool(ends))
    if not _is_mapping(spec.get("runtimeEnvYAML") or "{}"):
        yield "runtimeEnvYAML is no YAML mapping"


def _deletion(strategy: Manifest, *, ends: bool) -> Iterator[str]:
    rules, old = strategy.get("deletionRules"), [strategy.get("onSuccess"), strategy.get("onFailure")]
    if rules and (ends or any(old)):
        yield "deletionStrategy.deletionRules go with neither shutdownAfterJobFinishes nor onSuccess and onFailure"
    elif not rules and not all(old):
        yield "deletionStrategy needs deletionRules, or both onSuccess and onFailure"


def _is_mapping(text: Any) -> bool:
    try:
        return isinstance(yaml.safe_load(text), dict)
    except yaml.YAMLError:
        return False
