"""Rules for HTTPS up to the pods: all of the way or none of it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import PurePosixPath

from serve_app.k8s.rules.manifests import (
    Found,
    Manifest,
    ingress_services,
    mounted,
    of_kind,
    rule,
    serve_configs,
    templates,
    variables,
)

PROTOCOL = "alb.ingress.kubernetes.io/backend-protocol"
HAPROXY = "RAY_SERVE_ENABLE_HA_PROXY"


@rule("pod-tls")
def pod_tls(manifests: Sequence[Manifest]) -> Found:
    for owner, document in serve_configs(list(of_kind(manifests, "RayService"))):
        http = document.get("http_options") or {}
        files = [http[name] for name in ("ssl_certfile", "ssl_keyfile") if http.get(name)]
        if len(files) == 1:
            yield owner, f"http_options has {files[0]} alone: certificate and key go together"
            continue
        if files:
            yield from ((owner, message) for message in _pods(owner, files))
        service = f"{owner['metadata']['name']}-serve-svc"
        for ingress in of_kind(manifests, "Ingress"):
            if service in {one["name"] for one in ingress_services(ingress)}:
                asks = (ingress["metadata"].get("annotations") or {}).get(PROTOCOL, "HTTP")
                speaks = "HTTPS" if files else "HTTP"
                if ingress["spec"].get("ingressClassName") == "alb" and asks != speaks:
                    yield ingress, f"its load balancer asks the pods by {asks}, and they speak {speaks}"
        for route in of_kind(manifests, "HTTPRoute"):
            if files and f'"{service}"' in json.dumps(route["spec"].get("rules")):
                yield route, "a Gateway asks the pods by HTTP, and they speak HTTPS"


def _pods(owner: Manifest, files: list[str]) -> Iterator[str]:
    if not (owner.get("spec") or {}).get("excludeHeadPodFromServeSvc"):
        yield "the operator asks the head's proxy by HTTP, which is HTTPS: set excludeHeadPodFromServeSvc"
    for template in templates([owner]):
        name = template.group.get("groupName") or template.place
        for file in files:
            if str(PurePosixPath(file).parent) not in mounted(template.main):
                yield f"{name}: {file} is not mounted, so its proxy does not start"
        if variables(template.main).get(HAPROXY, "0") == "1":
            yield f"{name}: Ray's HAProxy has no TLS ({HAPROXY}), and would answer in the clear"
        if template.place == "worker" and "https://" not in json.dumps(template.main.get("readinessProbe")):
            yield f"{name}: KubeRay's own readiness probe asks by HTTP, so its pods are never ready; write one"


@rule("certificates", whole=True)
def certificates(manifests: Sequence[Manifest]) -> Found:
    used = {
        (volume.get("secret") or {}).get("secretName")
        for template in templates(manifests)
        for volume in template.spec.get("volumes") or []
    }
    for certificate in of_kind(manifests, "Certificate"):
        if certificate["spec"]["secretName"] not in used:
            yield certificate, f"no pod mounts its Secret '{certificate['spec']['secretName']}'"
