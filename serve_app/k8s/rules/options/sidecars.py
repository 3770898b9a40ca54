"""Rules for containers beside Ray's."""

from __future__ import annotations

from collections.abc import Sequence

from serve_app.k8s.rules.manifests import Found, Manifest, rule, templates

RAY_LOGS = "/tmp/ray"


@rule("log-files")
def log_files(manifests: Sequence[Manifest]) -> Found:
    """What reads Ray's logs is beside Ray, and sees the folder that Ray writes to."""
    for template in templates(manifests):
        main = {mount["name"] for mount in template.main.get("volumeMounts") or [] if mount["mountPath"] == "/tmp"}
        for container in template.containers:
            if container is template.main or RAY_LOGS not in " ".join(map(str, container.get("args") or [])):
                continue
            mounts = {m["name"] for m in container.get("volumeMounts") or [] if m["mountPath"] == "/tmp"}
            if not mounts & main:
                yield template.owner, f"{container['name']} reads Ray's logs and does not mount Ray's /tmp"
            starts = container in (template.spec.get("initContainers") or [])
            if starts and container.get("restartPolicy") != "Always":
                yield template.owner, f"{container['name']} is an init container that never ends, so Ray never starts"
