"""Rules for KubeRay's objects: what passes the CRD's schema and fails, or is ignored, in the operator."""

from __future__ import annotations

from collections.abc import Sequence

from serve_app.k8s.pods import GPU_RESOURCE
from serve_app.k8s.rules.manifests import (
    Found,
    Manifest,
    limit,
    of_kind,
    ray_clusters,
    rule,
    templates,
    variables,
)
from serve_app.k8s.values import ray_version

UPGRADES = ("NewCluster", "NewClusterWithIncrementalUpgrade", "None")
MAX_NAME = 47  # the operator appends; labels allow 63
# Off by default in KubeRay 1.7.
GATED = ("networkPolicy", "tlsOptions", "historyServerOptions")
DEAD = ("serviceUnhealthySecondThreshold", "deploymentUnhealthySecondThreshold")
TOKEN_SINCE = (2, 52)
REDIS_VARIABLES = ("RAY_REDIS_ADDRESS", "REDIS_PASSWORD")
REQUIRED_VARIABLES = {"RAY_worker_niceness": "0", "RAY_SERVE_FORCE_STOP_UNHEALTHY_REPLICAS": "1"}


@rule("upgrade-type")
def upgrade_type(manifests: Sequence[Manifest]) -> Found:
    for service in of_kind(manifests, "RayService"):
        kind = (service["spec"].get("upgradeStrategy") or {}).get("type", "NewCluster")
        if kind not in UPGRADES:
            yield service, f"upgradeStrategy.type '{kind}' is not one of {', '.join(UPGRADES)}"


@rule("incremental-upgrade")
def incremental_upgrade(manifests: Sequence[Manifest]) -> Found:
    for service in of_kind(manifests, "RayService"):
        strategy = service["spec"].get("upgradeStrategy") or {}
        if strategy.get("type") != "NewClusterWithIncrementalUpgrade":
            continue
        options = strategy.get("clusterUpgradeOptions") or {}
        if not options.get("gatewayClassName"):
            yield service, "an incremental upgrade needs clusterUpgradeOptions.gatewayClassName"
        if options.get("stepSizePercent", 0) > options.get("maxSurgePercent", 100):
            yield service, "clusterUpgradeOptions: stepSizePercent is above maxSurgePercent"
        if not service["spec"]["rayClusterConfig"].get("enableInTreeAutoscaling"):
            yield service, "an incremental upgrade needs enableInTreeAutoscaling"


@rule("dead-field")
def dead_field(manifests: Sequence[Manifest]) -> Found:
    for service in of_kind(manifests, "RayService"):
        for field in DEAD:
            if field in service["spec"]:
                yield service, f"{field} does nothing; use the annotation ray.io/initializing-timeout"


@rule("feature-gate")
def feature_gate(manifests: Sequence[Manifest]) -> Found:
    for owner in of_kind(manifests, "RayCronJob"):
        yield owner, "RayCronJob is behind a feature gate that is off"
    for owner, cluster in ray_clusters(manifests):
        for field in GATED:
            if field in cluster:
                yield owner, f"{field} is behind a feature gate that is off"


@rule("token-auth")
def token_auth(manifests: Sequence[Manifest]) -> Found:
    for owner, cluster in ray_clusters(manifests):
        options = cluster.get("authOptions") or {}
        if options.get("mode") != "token":
            yield owner, "authOptions.mode is not token: anybody in the network could run code by the dashboard"
        elif tuple(int(part) for part in str(cluster.get("rayVersion", "0.0")).split(".")[:2]) < TOKEN_SINCE:
            yield owner, "authOptions.mode token needs rayVersion 2.52 or newer"
        if options.get("enableK8sTokenAuth"):
            yield owner, "enableK8sTokenAuth is refused for RayService and RayJob"


@rule("ray-version")
def same_ray(manifests: Sequence[Manifest]) -> Found:
    for owner, cluster in ray_clusters(manifests):
        if (found := cluster.get("rayVersion")) != ray_version():
            yield owner, f"rayVersion {found} is not the pinned {ray_version()}, which the image has"
        images = {template.main.get("image") for template in templates([owner])}
        images |= {(cluster.get("autoscalerOptions") or {}).get("image")} - {None}
        if len(images) > 1:
            yield owner, f"head, workers and submitter have different images: {', '.join(sorted(map(str, images)))}"


@rule("name-length")
def name_length(manifests: Sequence[Manifest]) -> Found:
    for service in of_kind(manifests, "RayService", "RayJob"):
        if len(name := service["metadata"]["name"]) > MAX_NAME:
            yield service, f"the name has {len(name)} characters; the operator takes {MAX_NAME}"


@rule("group-bounds")
def group_bounds(manifests: Sequence[Manifest]) -> Found:
    for owner, cluster in ray_clusters(manifests):
        names = [group["groupName"] for group in cluster.get("workerGroupSpecs") or []]
        if len(set(names)) < len(names):
            yield owner, "two worker groups have the same groupName"
        for group in cluster.get("workerGroupSpecs") or []:
            low, high = group.get("minReplicas", 0), group.get("maxReplicas", 1)
            if low > high:
                yield owner, f"{group['groupName']}: minReplicas {low} is above maxReplicas {high}"
            elif not low <= group.get("replicas", low) <= high:
                yield owner, f"{group['groupName']}: replicas {group['replicas']} is not between {low} and {high}"


@rule("head-devices")
def head_devices(manifests: Sequence[Manifest]) -> Found:
    for owner, cluster in ray_clusters(of_kind_list(manifests, "RayService")):
        head = cluster["headGroupSpec"]
        if (head.get("rayStartParams") or {}).get("num-cpus") != "0":
            yield owner, 'the head can get replicas: set rayStartParams.num-cpus to "0"'
        if (head.get("rayStartParams") or {}).get("dashboard-host") != "0.0.0.0":
            yield owner, "the operator cannot reach the dashboard: set rayStartParams.dashboard-host to 0.0.0.0"
        if limit(head["template"]["spec"]["containers"][0], GPU_RESOURCE):
            yield owner, "the head has a GPU, which no replica will use"


@rule("head-ports")
def head_ports(manifests: Sequence[Manifest]) -> Found:
    """The head's Service takes its container's ports, workers rayStartParams."""
    for owner, cluster in ray_clusters(manifests):
        head = cluster["headGroupSpec"]
        containers = head["template"]["spec"].get("containers") or [{}]
        named = {port.get("name"): port["containerPort"] for port in containers[0].get("ports") or []}
        for param, name, usual in (("port", "gcs-server", 6379), ("dashboard-port", "dashboard", 8265)):
            started = str((head.get("rayStartParams") or {}).get(param, usual))
            if name in named and started != str(named[name]):
                yield owner, f"rayStartParams.{param} {started} is not the head's port {name}, {named[name]}"


@rule("head-disruption")
def head_disruption(manifests: Sequence[Manifest]) -> Found:
    for template in templates(of_kind_list(manifests, "RayService")):
        annotations = template.metadata.get("annotations") or {}
        if template.place == "head" and annotations.get("karpenter.sh/do-not-disrupt") != "true":
            yield template.owner, "the head has no annotation karpenter.sh/do-not-disrupt"


@rule("ray-pod-deadline")
def ray_pod_deadline(manifests: Sequence[Manifest]) -> Found:
    for template in templates(manifests):
        if template.place and template.spec.get("activeDeadlineSeconds") is not None:
            yield template.owner, f"activeDeadlineSeconds of a {template.place} pod ends it while it serves"


@rule("autoscaler-restart")
def autoscaler_restart(manifests: Sequence[Manifest]) -> Found:
    for template in templates(manifests):
        if template.place == "worker" and template.spec.get("restartPolicy", "Never") != "Never":
            yield template.owner, f"restartPolicy {template.spec['restartPolicy']}: autoscaler v2 needs Never, or none"


@rule("autoscaler-version")
def autoscaler_version(manifests: Sequence[Manifest]) -> Found:
    for owner, cluster in ray_clusters(manifests):
        if cluster.get("enableInTreeAutoscaling") and (cluster.get("autoscalerOptions") or {}).get("version") != "v2":
            yield owner, "autoscalerOptions.version is not v2"


@rule("redis-twice")
def redis_twice(manifests: Sequence[Manifest]) -> Found:
    for owner, cluster in ray_clusters(manifests):
        if "gcsFaultToleranceOptions" not in cluster:
            continue
        if "ray.io/ft-enabled" in (owner["metadata"].get("annotations") or {}):
            yield owner, "gcsFaultToleranceOptions and the annotation ray.io/ft-enabled exclude each other"
        head = cluster["headGroupSpec"]
        if "redis-password" in (head.get("rayStartParams") or {}):
            yield owner, "gcsFaultToleranceOptions and rayStartParams.redis-password exclude each other"
        for name in REDIS_VARIABLES:
            if name in variables(head["template"]["spec"]["containers"][0]):
                yield owner, f"gcsFaultToleranceOptions and the variable {name} exclude each other"


@rule("fault-tolerance")
def fault_tolerance(manifests: Sequence[Manifest]) -> Found:
    for owner, cluster in ray_clusters(of_kind_list(manifests, "RayService")):
        options = cluster.get("gcsFaultToleranceOptions") or {}
        if not options.get("redisAddress"):
            yield owner, "without gcsFaultToleranceOptions.redisAddress a lost head takes all replicas with it"
        elif "valueFrom" not in (options.get("redisPassword") or {}):
            yield owner, "gcsFaultToleranceOptions.redisPassword is not from a Secret"


@rule("ray-environment")
def ray_environment(manifests: Sequence[Manifest]) -> Found:
    for template in templates(of_kind_list(manifests, "RayService")):
        found = variables(template.main)
        for name, value in REQUIRED_VARIABLES.items():
            if template.place and found.get(name) != value:
                yield template.owner, f"{template.main.get('name')}: {name} is not {value}"
        if template.place == "worker" and found.get("VLLM_PORT") in (None, "8000"):
            yield template.owner, "VLLM_PORT must be set, and away from Serve's 8000"
        if nccl := [name for name in found if name.startswith("NCCL_SOCKET")]:
            yield template.owner, f"{nccl[0]}: tensor parallelism in one node goes by shared memory"


@rule("initializing-timeout")
def initializing_timeout(manifests: Sequence[Manifest]) -> Found:
    for service in of_kind(manifests, "RayService"):
        if "ray.io/initializing-timeout" not in (service["metadata"].get("annotations") or {}):
            yield service, "no annotation ray.io/initializing-timeout: a cluster that never starts is never given up"


def of_kind_list(manifests: Sequence[Manifest], *kinds: str) -> list[Manifest]:
    return list(of_kind(manifests, *kinds))
