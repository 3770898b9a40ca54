"""Rules between objects: references, selectors, budgets, rights."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from math import ceil

from serve_app.k8s.pods import CAPACITY_NODE_LABEL, GPU_RESOURCE
from serve_app.k8s.rules.manifests import Found, Manifest, Template, of_kind, rule, selects, templates

CLUSTER_WIDE = (
    "Namespace", "PriorityClass", "ClusterRole", "ClusterRoleBinding", "StorageClass", "NodePool", "EC2NodeClass",
    "NodeClass", "ClusterIssuer", "GatewayClass", "CustomResourceDefinition", "ClusterConfig", "PersistentVolume",
)  # fmt: skip


@rule("twice")
def twice(manifests: Sequence[Manifest]) -> Found:
    seen: Counter[tuple[str, str]] = Counter()
    for manifest in manifests:
        key = manifest.get("kind", ""), manifest["metadata"]["name"]
        seen[key] += 1
        if seen[key] == 2:
            yield manifest, "is there twice; the second would overwrite the first"


@rule("namespace")
def one_namespace(manifests: Sequence[Manifest]) -> Found:
    spaces = Counter(m["metadata"].get("namespace") for m in manifests if m.get("kind") not in CLUSTER_WIDE)
    if len(spaces) < 2:
        return
    usual = spaces.most_common(1)[0][0]
    for manifest in manifests:
        if manifest.get("kind") not in CLUSTER_WIDE and manifest["metadata"].get("namespace") != usual:
            yield manifest, f"is in namespace {manifest['metadata'].get('namespace')}, the others in {usual}"


@rule("budget-form")
def budget_form(manifests: Sequence[Manifest]) -> Found:
    for budget in of_kind(manifests, "PodDisruptionBudget"):
        spec = budget["spec"]
        if "minAvailable" in spec and "maxUnavailable" in spec:
            yield budget, "has minAvailable and maxUnavailable; one is allowed"
        ray = [t for t in templates(manifests) if t.place and selects(spec.get("selector") or {}, t.labels)]
        if ray and "maxUnavailable" in spec:
            yield budget, "maxUnavailable on Ray's pods blocks drains for ever: they have no scale subresource"
        if ray and isinstance(spec.get("minAvailable"), str):
            yield budget, "a percentage on Ray's pods blocks drains for ever: they have no scale subresource"


@rule("budget-mixed")
def budget_mixed(manifests: Sequence[Manifest]) -> Found:
    """A budget counts all pods it selects: one owner's ready pods allow another's evictions."""
    for budget in of_kind(manifests, "PodDisruptionBudget"):
        selector = budget["spec"].get("selector") or {"matchLabels": {}}
        owners = {
            (t.owner["kind"], t.owner["metadata"]["name"]) for t in templates(manifests) if selects(selector, t.labels)
        }
        if len(owners) > 1:
            named = ", ".join(f"{kind}/{name}" for kind, name in sorted(owners))
            yield budget, f"counts the pods of {named} together: spot pods would stand for online ones"


@rule("budget-twice")
def budget_twice(manifests: Sequence[Manifest]) -> Found:
    budgets = list(of_kind(manifests, "PodDisruptionBudget"))
    for template in templates(manifests):
        ours = [b for b in budgets if selects(b["spec"].get("selector") or {"matchLabels": {}}, template.labels)]
        if len(ours) > 1:
            names = " and ".join(budget["metadata"]["name"] for budget in ours)
            yield ours[1], f"{names} count the same pods: the API server then evicts none"


@rule("priorities", whole=True)
def priorities(manifests: Sequence[Manifest]) -> Found:
    """Preemptible pods have low priority and preempt nobody."""
    classes = {m["metadata"]["name"]: m for m in of_kind(manifests, "PriorityClass")}
    placed = [(t, (t.spec.get("nodeSelector") or {}).get(CAPACITY_NODE_LABEL)) for t in templates(manifests)]
    lasting = [classes[n]["value"] for t, where in placed if where == "on-demand" and (n := _priority(t)) in classes]
    for template, where in placed:
        found = classes.get(_priority(template)) if where == "spot" else None
        if found and found.get("preemptionPolicy") != "Never":
            yield found, "is of pods on spot nodes, and would displace others: set preemptionPolicy to Never"
        if found and lasting and found["value"] >= min(lasting):
            yield found, "is of pods on spot nodes, and not below that of online replicas"


def _priority(template: Template) -> str:
    return str(template.spec.get("priorityClassName"))


@rule("budget-blocks")
def budget_blocks(manifests: Sequence[Manifest]) -> Found:
    for budget in of_kind(manifests, "PodDisruptionBudget"):
        spec = budget["spec"]
        if spec.get("maxUnavailable") in (0, "0", "0%"):
            yield budget, "lets no pod go, and blocks the drain of every node of theirs"
        chosen = [t for t in templates(manifests) if selects(spec.get("selector") or {"matchLabels": {}}, t.labels)]
        if not chosen:
            if any(True for _ in templates(manifests)):
                yield budget, "selects no pod that is here"
            continue
        least = sum(_least(template) for template in chosen)
        stay = spec.get("minAvailable", 0)
        share = isinstance(stay, str) and not any(template.place for template in chosen)  # another rule's
        count = ceil(least * int(stay.rstrip("%")) / 100) if share else stay
        if isinstance(count, int) and count >= least:
            yield budget, f"minAvailable {stay} of {least} pod(s) blocks the drain of every node of theirs"


def _least(template: Template) -> int:
    if template.place == "head":
        return 1
    return int(template.group.get("minReplicas", template.owner.get("spec", {}).get("replicas", 1)))


@rule("selectors")
def selectors(manifests: Sequence[Manifest]) -> Found:
    found = list(templates(manifests))
    for owner in of_kind(manifests, "Deployment", "StatefulSet"):
        labels = (owner["spec"]["template"].get("metadata") or {}).get("labels") or {}
        if not selects(owner["spec"].get("selector") or {}, labels):
            yield owner, "its selector does not take its own pods"
    for service in of_kind(manifests, "Service"):
        chosen = [template for template in found if selects(service["spec"].get("selector") or {}, template.labels)]
        if service["spec"].get("selector") and found and not chosen:
            yield service, "selects no pod that is here"
        for port in service["spec"].get("ports") or []:
            target = port.get("targetPort", port["port"])
            ports = [
                (p.get("name"), p["containerPort"]) for t in chosen for c in t.containers for p in c.get("ports") or []
            ]
            if chosen and not any(target in pair for pair in ports):
                yield service, f"its pods have no port {target}"


@rule("rights")
def rights(manifests: Sequence[Manifest]) -> Found:
    for role in of_kind(manifests, "Role", "ClusterRole"):
        for entry in role.get("rules") or []:
            if "*" in [*(entry.get("verbs") or []), *(entry.get("resources") or []), *(entry.get("apiGroups") or [])]:
                yield role, "grants '*'; name what is needed"
    for binding in of_kind(manifests, "RoleBinding", "ClusterRoleBinding"):
        if binding["roleRef"]["name"] in ("cluster-admin", "admin", "edit"):
            yield binding, f"binds {binding['roleRef']['name']}; write a Role of what is needed"


@rule("job-ends")
def job_ends(manifests: Sequence[Manifest]) -> Found:
    for job in of_kind(manifests, "Job", "CronJob"):
        spec = job["spec"] if job["kind"] == "Job" else job["spec"]["jobTemplate"]["spec"]
        if spec.get("activeDeadlineSeconds") is None:
            yield job, "no activeDeadlineSeconds: a Job that hangs holds its nodes for ever"
        if spec["template"]["spec"].get("restartPolicy") not in ("Never", "OnFailure"):
            yield job, "restartPolicy of a Job is Never or OnFailure"
    for job in of_kind(manifests, "RayJob"):
        if not job["spec"].get("shutdownAfterJobFinishes"):
            yield job, "shutdownAfterJobFinishes is not set: its GPUs would stay when it is done"
        if job["spec"].get("activeDeadlineSeconds") is None:
            yield job, "no activeDeadlineSeconds: a RayJob that hangs holds its GPUs for ever"


@rule("autoscaled-twice")
def autoscaled_twice(manifests: Sequence[Manifest]) -> Found:
    for scaler in of_kind(manifests, "HorizontalPodAutoscaler", "ScaledObject", "VerticalPodAutoscaler"):
        target = scaler["spec"].get("scaleTargetRef") or scaler["spec"].get("targetRef") or {}
        kind, name = target.get("kind", "Deployment"), target.get("name")
        if str(kind).startswith("Ray"):
            yield scaler, f"scales a {kind}, which Ray's autoscaler does; they would undo each other"
        elif name not in {m["metadata"]["name"] for m in of_kind(manifests, kind)}:
            yield scaler, f"there is no {kind} '{name}' to scale"


@rule("claim-of-one-node")
def claim_of_one_node(manifests: Sequence[Manifest]) -> Found:
    """A ReadWriteOnce claim blocks pods on a second node forever (Multi-Attach)."""
    for claim in of_kind(manifests, "PersistentVolumeClaim"):
        if set(claim["spec"].get("accessModes") or []) & {"ReadWriteMany", "ReadOnlyMany"}:
            continue
        users = [t for t in templates(manifests) if claim["metadata"]["name"] in _claims(t)]
        apart = [t for t in users if not (t.spec.get("affinity") or {}).get("podAffinity")]
        if len(apart) > 1 or any(_most(t) > 1 for t in users):
            yield claim, "is ReadWriteOnce, and pods mount it that may be on different nodes"


def _claims(template: Template) -> set[str]:
    volumes = template.spec.get("volumes") or []
    return {v["persistentVolumeClaim"]["claimName"] for v in volumes if "persistentVolumeClaim" in v}


def _most(template: Template) -> int:
    if template.place == "head":
        return 1
    return int(template.group.get("maxReplicas", (template.owner.get("spec") or {}).get("replicas", 1)))


# The node pools' terminationGracePeriod; a database's shutdown.
MAX_GRACE_S, MIN_WRITE_S = 3600, 10


@rule("grace")
def grace(manifests: Sequence[Manifest]) -> Found:
    """Grace periods outside Ray; the rule `drain` covers RayServices."""
    for template in templates(manifests):
        seconds = template.spec.get("terminationGracePeriodSeconds", 30)
        if seconds < 1:
            yield template.owner, "terminationGracePeriodSeconds 0 kills without asking"
        elif seconds > MAX_GRACE_S:
            yield template.owner, f"terminationGracePeriodSeconds {seconds} is above the {MAX_GRACE_S} s of a node"
        elif template.owner["kind"] == "StatefulSet" and seconds < MIN_WRITE_S:
            yield template.owner, f"terminationGracePeriodSeconds {seconds} is too short to write what is in memory"
        elif template.place == "" and (pause := _pause(template)) >= seconds:
            yield template.owner, f"terminationGracePeriodSeconds {seconds} is over before preStop's {pause:g} s are"
        elif template.owner["kind"] in ("Deployment", "Job") and "readinessProbe" in template.main and seconds < 120:
            yield template.owner, f"terminationGracePeriodSeconds {seconds} cuts the streams that it still answers"
        elif template.owner["kind"] == "Deployment" and "readinessProbe" in template.main and not pause:
            yield template.owner, "no preStop pause: its Service still sends it requests when it ends"


def _pause(template: Template) -> float:
    hook = ((template.main.get("lifecycle") or {}).get("preStop") or {}) or {}
    command = (hook.get("exec") or {}).get("command") or []
    slept = command[1] if command[:1] == ["sleep"] and len(command) > 1 else (hook.get("sleep") or {}).get("seconds", 0)
    return float(slept)


@rule("persistent-redis")
def persistent_redis(manifests: Sequence[Manifest]) -> Found:
    for owner in of_kind(manifests, "StatefulSet"):
        command = " ".join([*owner_container(owner).get("command", []), *owner_container(owner).get("args", [])])
        if "redis-server" not in command:
            continue
        if not owner["spec"].get("volumeClaimTemplates"):
            yield owner, "Redis has no volume: a moved pod would forget the cluster"
        if owner["spec"].get("replicas", 1) != 1:
            yield owner, "several Redis that know nothing of each other: replicas is to be 1"
        if "--appendonly yes" not in command:
            yield owner, "Redis does not write ahead (--appendonly yes)"


def owner_container(owner: Manifest) -> Manifest:
    container: Manifest = owner["spec"]["template"]["spec"]["containers"][0]
    return container


@rule("node-pool-limit")
def node_pool_limit(manifests: Sequence[Manifest]) -> Found:
    for pool in of_kind(manifests, "NodePool"):
        if not pool["spec"].get("limits"):
            yield pool, "no limits: a mistake could buy any number of nodes"
        template = pool["spec"]["template"]
        if GPU_RESOURCE in (pool["spec"].get("limits") or {}) and not any(
            taint.get("key") == GPU_RESOURCE for taint in template["spec"].get("taints") or []
        ):
            yield pool, "GPU nodes without the taint nvidia.com/gpu fill up with other pods"
