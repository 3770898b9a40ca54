"""`make k8s-check`: every overlay and every file of cluster/ through all checks, and every bad manifest refused.

Prints what is wrong, then one JSON line: {"objects", "rules", "pod_security", "double_apply_clean",
"two_installations_clean", "refused_bad", "errors", "skipped"}. What could not be checked here is in "skipped" with its
reason, and in CI an error. Nothing of this asks a cluster. Ends with 1 if anything is wrong.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from itertools import combinations
from pathlib import Path
from tempfile import TemporaryDirectory

from serve_app.k8s.render import rendered_files
from serve_app.k8s.rules import RULES
from serve_app.k8s.rules.manifests import Manifest, templates
from serve_app.k8s.rules.pod_security import level_of, refused
from serve_app.k8s.values import Values
from tests.k8s import checks, lint, sets
from tests.k8s.bad import all_bad

# Of names of sets.
CLUSTER, INSTALLATION = "cluster/", "installation "


def main() -> int:
    """The exit status."""
    errors, skipped = [*stale(), *lint.errors()], [*lint.skipped()]
    if sets.KUBECTL is None:
        skipped.append(sets.WITHOUT_KUBECTL)
    good, found = good_sets()
    refused, wrong = check_bad()
    found += [f"{name}: {refusal}" for name, manifests in good.items() for refusal in checks.refusals(
        manifests, whole=not name.startswith(CLUSTER))]  # fmt: skip
    insecure, changed, shared = pod_security(good), double_apply(good), two_installations(good)
    errors += [*found, *wrong, *insecure, *changed, *shared]
    if os.environ.get("CI"):
        errors += [f"skipped: {reason}" for reason in skipped]
    for error in errors:
        print(error, file=sys.stderr)
    figures = {
        "objects": sum(map(len, good.values())),
        "rules": len(RULES),
        "pod_security": not insecure,
        "double_apply_clean": not changed,
        "two_installations_clean": not shared,
        "refused_bad": refused,
        "errors": len(errors),
        "skipped": skipped,
    }
    print(json.dumps(figures))
    return bool(errors)


def stale() -> list[str]:
    """Rendered files that are not what the values make."""
    files = rendered_files(Values.load(checks.ROOT / "k8s/values.yaml"))
    return [
        f"{path} is not what k8s/values.yaml makes: run `serve-app k8s render --write`"
        for path, text in files.items()
        if (checks.ROOT / path).read_text() != text
    ]


def good_sets() -> tuple[dict[str, list[Manifest]], list[str]]:
    """(objects by set: overlays, files of cluster/, installations of several values files; what kustomize refuses)."""
    found: dict[str, list[Manifest]] = {}
    errors = []
    for name in sets.overlays() if sets.KUBECTL else []:
        try:
            found[name] = sets.overlay(name)
        except subprocess.CalledProcessError as error:
            errors.append(f"{name}: kustomize: {error.stderr.strip()}")
    for path in sets.cluster_files():
        found[f"{CLUSTER}{path.relative_to(sets.CLUSTER)}"] = checks.load(path.read_text())
    with TemporaryDirectory() as folder:
        for mine in sets.NEIGHBOURS:
            found[f"{INSTALLATION}{mine['namespace']}/{mine['name']}"] = sets.made(Path(folder), mine)
    return found, errors


def pod_security(good: dict[str, list[Manifest]]) -> list[str]:
    """Pods that their namespace's level refuses."""
    return [
        f"{name}: {checks.name(template.owner)}: {message}"
        for name, manifests in good.items()
        for template in templates(manifests)
        for message in refused(template, level_of(template, manifests))
    ]


def double_apply(good: dict[str, list[Manifest]]) -> list[str]:
    """Fields that CRDs and operator write otherwise than we do, so that a second apply conflicts."""
    return [
        f"{name}: {checks.name(manifest)}: {place} is not as it is written back"
        for name, manifests in good.items()
        for manifest in manifests
        for place in checks.applied_again(manifest)
    ]


def two_installations(good: dict[str, list[Manifest]]) -> list[str]:
    """Objects that two values files both make."""
    made = {n: {sets.identity(m) for m in manifests} for n, manifests in good.items() if n.startswith(INSTALLATION)}
    return [
        f"{one} and {other} both have {' '.join(filter(None, both))}"
        for one, other in combinations(made, 2)
        for both in sorted(made[one] & made[other])
    ]


def check_bad() -> tuple[int, list[str]]:
    """(how many bad manifests were refused for the right reason, what is wrong with the others)."""
    refused, errors = 0, []
    for bad in all_bad():
        if bad.overlay and sets.KUBECTL is None:
            continue
        if bad.is_refused_rightly(found := bad.refusals()):
            refused += 1
        else:
            reasons = "; ".join(map(str, found)) or "nothing"
            errors.append(f"bad/{bad.path.name}: expected {bad.check}: {bad.reason}; found {reasons}")
    return refused, errors


if __name__ == "__main__":
    sys.exit(main())
