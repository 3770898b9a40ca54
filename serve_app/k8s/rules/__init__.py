"""Our rules, for faults that no schema shows and only the cluster would.

A rule takes all objects and yields the faulty one with a message. Rules marked `whole` need the complete installation.
k8s/README.md lists the pitfalls.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from serve_app.k8s.rules import (
    config,
    exposure,
    form,
    network,
    objects,
    operator,
    options,
    pod_security,
    pods,
    ray,
    reach,
    references,
    secrets,
)
from serve_app.k8s.rules.manifests import RULES, Manifest, Problem

__all__ = ["RULES", "Problem", "check"]
# They register their rules.
_SETS = (
    config, exposure, form, network, objects, operator, options, pod_security, pods, ray, reach, references, secrets,
)  # fmt: skip


def check(manifests: Sequence[Manifest], *, whole: bool = True) -> Iterator[Problem]:
    """Each broken rule; with `whole` also of those that need the complete installation."""
    for rule in RULES.values():
        if whole or not rule.whole:
            for manifest, message in rule.find(manifests):
                yield Problem(rule.name, f"{manifest.get('kind')}/{manifest.get('metadata', {}).get('name')}", message)
