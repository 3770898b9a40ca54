"""`make k8s-check`: every overlay and every file of cluster/ through all checks, and every bad manifest refused.

Prints what is wrong, then one JSON line: {"objects", "rules", "refused_bad", "errors"}; "skipped" says what could not
be checked here, and why. Ends with 1 if anything is wrong.
"""

from __future__ import annotations

import json
import subprocess
import sys

from serve_app.k8s.render import rendered_files
from serve_app.k8s.rules import RULES
from serve_app.k8s.values import Values
from tests.k8s import checks, lint, sets
from tests.k8s.bad import all_bad


def main() -> int:
    """The exit status."""
    errors, skipped = [*stale(), *lint.errors()], [*lint.skipped()]
    if checks.CRDS is None:
        skipped.append(checks.WITHOUT_CRDS)
    objects, found = check_good(skipped)
    refused, wrong = check_bad()
    errors += [*found, *wrong]
    for error in errors:
        print(error, file=sys.stderr)
    figures = {"objects": objects, "rules": len(RULES), "refused_bad": refused, "errors": len(errors)}
    print(json.dumps({**figures, "skipped": skipped} if skipped else figures))
    return bool(errors)


def stale() -> list[str]:
    """Rendered files that are not what the values make."""
    files = rendered_files(Values.load(checks.ROOT / "k8s/values.yaml"))
    return [
        f"{path} is not what k8s/values.yaml makes: run `serve-app k8s render --write`"
        for path, text in files.items()
        if (checks.ROOT / path).read_text() != text
    ]


def check_good(skipped: list[str]) -> tuple[int, list[str]]:
    """(number of objects, what is wrong with them)."""
    objects, errors = 0, []
    if sets.KUBECTL is None:
        skipped.append(sets.WITHOUT_KUBECTL)
    for name in sets.overlays() if sets.KUBECTL else []:
        try:
            manifests = sets.overlay(name)
        except subprocess.CalledProcessError as error:
            errors.append(f"{name}: kustomize: {error.stderr.strip()}")
            continue
        objects += len(manifests)
        errors += [f"{name}: {refusal}" for refusal in checks.refusals(manifests)]
    for path in sets.cluster_files():
        manifests = checks.load(path.read_text())
        objects += len(manifests)
        errors += [f"{path.name}: {refusal}" for refusal in checks.refusals(manifests, whole=False)]
    return objects, errors


def check_bad() -> tuple[int, list[str]]:
    """(how many bad manifests were refused for the right reason, what is wrong with the others)."""
    refused, errors = 0, []
    for bad in all_bad():
        if (bad.needs_crds and checks.CRDS is None) or (bad.overlay and sets.KUBECTL is None):
            continue
        if bad.is_refused_rightly(found := bad.refusals()):
            refused += 1
        else:
            reasons = "; ".join(map(str, found)) or "nothing"
            errors.append(f"bad/{bad.path.name}: expected {bad.check}: {bad.reason}; found {reasons}")
    return refused, errors


if __name__ == "__main__":
    sys.exit(main())
