"""Our own rules: what no schema says and only the operator, the scheduler or a user would find out.

A rule looks at all objects of a set and yields the object at fault and what is wrong with it. Those marked `whole` need
everything that is applied together; the others hold for any part. The pitfalls behind them are in k8s/README.md.
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
    pod_security,
    pods,
    ray,
    reach,
    references,
    secrets,
)
from serve_app.k8s.rules.manifests import RULES, Manifest, Problem

__all__ = ["RULES", "Problem", "check"]
# Imported for the rules that they register.
_SETS = (
    config, exposure, form, network, objects, operator, pod_security, pods, ray, reach, references, secrets,
)  # fmt: skip


def check(manifests: Sequence[Manifest], *, whole: bool = True) -> Iterator[Problem]:
    """Each breach of a rule; with `whole` also of the rules that need everything that is applied together."""
    for rule in RULES.values():
        if whole or not rule.whole:
            for manifest, message in rule.find(manifests):
                yield Problem(rule.name, f"{manifest.get('kind')}/{manifest.get('metadata', {}).get('name')}", message)
