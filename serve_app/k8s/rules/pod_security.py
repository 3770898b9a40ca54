"""Pod Security Standards: what the namespace's level refuses.

The level is the Namespace's label (pod-security.kubernetes.io/enforce), else the installation's annotation, else
`baseline`. Source: https://kubernetes.io/docs/concepts/security/pod-security-standards (Kubernetes 1.36). Our stricter
rule `security` requires `restricted` or an annotated reason.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from serve_app.k8s.pods import LEVEL_OF_OTHERS
from serve_app.k8s.rules.manifests import Found, Manifest, Template, of_kind, ray_clusters, rule, templates

LEVELS = ("privileged", "baseline", "restricted")
ENFORCE = "pod-security.kubernetes.io/enforce"
BASELINE_CAPABILITIES = {
    "AUDIT_WRITE", "CHOWN", "DAC_OVERRIDE", "FOWNER", "FSETID", "KILL", "MKNOD", "NET_BIND_SERVICE", "SETFCAP",
    "SETGID", "SETPCAP", "SETUID", "SYS_CHROOT",
}  # fmt: skip
SAFE_SYSCTLS = {
    "kernel.shm_rmid_forced", "net.ipv4.ip_local_port_range", "net.ipv4.ip_unprivileged_port_start",
    "net.ipv4.tcp_syncookies", "net.ipv4.ping_group_range", "net.ipv4.ip_local_reserved_ports",
    "net.ipv4.tcp_keepalive_time", "net.ipv4.tcp_fin_timeout", "net.ipv4.tcp_keepalive_intvl",
    "net.ipv4.tcp_keepalive_probes",
}  # fmt: skip
SELINUX_TYPES = (None, "", "container_t", "container_init_t", "container_kvm_t", "container_engine_t")
RESTRICTED_VOLUMES = {
    "configMap", "csi", "downwardAPI", "emptyDir", "ephemeral", "persistentVolumeClaim", "projected", "secret",
}  # fmt: skip


@rule("pod-security", whole=True)
def pod_security(manifests: Sequence[Manifest]) -> Found:
    for namespace in of_kind(manifests, "Namespace"):
        if (level := _level(namespace)) not in LEVELS:
            yield namespace, f"{ENFORCE} is {level or 'not set'}, not one of {', '.join(LEVELS)}"
        elif level == "privileged" and not any(True for t in templates(manifests) for _ in refused(t, "baseline")):
            yield namespace, "enforces privileged, and no pod here needs more than baseline"
    for template in templates(manifests):
        for message in refused(template, level_of(template, manifests)):
            yield template.owner, message
    for owner, cluster in ray_clusters(manifests):
        context = (cluster.get("autoscalerOptions") or {}).get("securityContext") or {}
        autoscaler = {"name": "autoscaler", "securityContext": context}
        template = Template(owner, "head", {}, {"containers": [autoscaler]}, {})
        if level_of(template, manifests) != "privileged":
            for message in _baseline_container(autoscaler):
                yield owner, message


def level_of(template: Template, manifests: Sequence[Manifest]) -> str:
    """The level enforced for these pods."""
    space = template.owner["metadata"].get("namespace")
    named = {m["metadata"]["name"]: m for m in of_kind(manifests, "Namespace")}
    if space in named:
        return _level(named[space]) or "baseline"
    given = [
        (m["metadata"].get("annotations") or {}).get(LEVEL_OF_OTHERS) for m in of_kind(manifests, "ServiceAccount")
    ]
    return next(filter(None, given), "baseline")


def _level(namespace: Manifest) -> str | None:
    level: str | None = (namespace["metadata"].get("labels") or {}).get(ENFORCE)
    return level


def refused(template: Template, level: str) -> Iterator[str]:
    """What this level refuses, in the API server's words."""
    if level not in ("baseline", "restricted"):
        return
    spec, context = template.spec, template.spec.get("securityContext") or {}
    for field in ("hostNetwork", "hostPID", "hostIPC"):
        if spec.get(field):
            yield f"{level} refuses {field}"
    for volume in spec.get("volumes") or []:
        if "hostPath" in volume:
            yield f"{level} refuses the hostPath volume '{volume['name']}'"
        elif level == "restricted" and (kinds := set(volume) - {"name"} - RESTRICTED_VOLUMES):
            yield f"restricted refuses the volume '{volume['name']}' ({', '.join(sorted(kinds))})"
    for sysctl in context.get("sysctls") or []:
        if sysctl["name"] not in SAFE_SYSCTLS:
            yield f"{level} refuses the sysctl {sysctl['name']}"
    yield from _profiles("the pod", context, level)
    for container in template.containers:
        yield from _baseline_container(container)
        yield from _profiles(container["name"], container.get("securityContext") or {}, level)
        if level == "restricted":
            yield from _restricted_container(container, context)


def _profiles(who: str, context: Manifest, level: str) -> Iterator[str]:
    if (context.get("seccompProfile") or {}).get("type") == "Unconfined":
        yield f"{level} refuses seccompProfile Unconfined ({who})"
    if (context.get("appArmorProfile") or {}).get("type") == "Unconfined":
        yield f"{level} refuses appArmorProfile Unconfined ({who})"
    if (context.get("windowsOptions") or {}).get("hostProcess"):
        yield f"{level} refuses hostProcess ({who})"
    options: dict[str, Any] = context.get("seLinuxOptions") or {}
    if options.get("type") not in SELINUX_TYPES or options.get("user") or options.get("role"):
        yield f"{level} refuses these seLinuxOptions ({who})"


def _baseline_container(container: Manifest) -> Iterator[str]:
    name, context = container["name"], container.get("securityContext") or {}
    if context.get("privileged"):
        yield f"baseline refuses that {name} is privileged"
    for capability in (context.get("capabilities") or {}).get("add") or []:
        if capability not in BASELINE_CAPABILITIES:
            yield f"baseline refuses the capability {capability} of {name}"
    if context.get("procMount", "Default") != "Default":
        yield f"baseline refuses procMount {context['procMount']} of {name}"
    for port in container.get("ports") or []:
        if port.get("hostPort"):
            yield f"baseline refuses hostPort {port['hostPort']} of {name}"
    for field in ("livenessProbe", "readinessProbe", "startupProbe"):
        probe = container.get(field) or {}
        if (probe.get("httpGet") or {}).get("host") or (probe.get("tcpSocket") or {}).get("host"):
            yield f"baseline refuses the host of {name}'s {field}"


def _restricted_container(container: Manifest, pod: Manifest) -> Iterator[str]:
    name, context = container["name"], container.get("securityContext") or {}
    capabilities = context.get("capabilities") or {}
    if context.get("allowPrivilegeEscalation") is not False:
        yield f"restricted wants allowPrivilegeEscalation false of {name}"
    if "ALL" not in (capabilities.get("drop") or []) or set(capabilities.get("add") or []) - {"NET_BIND_SERVICE"}:
        yield f"restricted wants all capabilities of {name} dropped"
    if not context.get("runAsNonRoot", pod.get("runAsNonRoot")) or context.get("runAsUser", pod.get("runAsUser")) == 0:
        yield f"restricted wants {name} not to run as root"
    if not (context.get("seccompProfile") or pod.get("seccompProfile")):
        yield f"restricted wants a seccompProfile of {name}"
