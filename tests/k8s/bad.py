"""The deliberately bad manifests of tests/k8s/bad/: each is laid over a good overlay, and says who refuses it and why.

    # upgrade-type: 'Rolling' is not one of        check (checks.py) and part of its reason
    # over: eks                                    the overlay, or `options` (sets.py); without it the file stands alone
    kind: RayService                               objects by kind and name (or a pattern of it); what has an
                                                   apiVersion and is not there is added
    …

Laid over means: mappings are merged, null removes, lists of named entries are merged by name, other lists replaced;
`metadata.renamed` is the object's new name.
"""

from __future__ import annotations

import copy
import re
from dataclasses import dataclass
from fnmatch import fnmatch
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from serve_app.k8s.rules.manifests import Manifest
from tests.k8s import checks, sets

FOLDER = Path(__file__).with_name("bad")
_FIRST = re.compile(r"# (?P<check>[\w-]+): (?P<reason>.+)\n(# over: (?P<overlay>[\w-]+)\n)?")
NAMES = ("name", "groupName")
# Who else may see the same: the CRDs have pods and some bounds, and our rule of security has what the levels have.
ALSO = {"pod": {"custom"}, "security": {"pod-security"}, "pod-security": {"security"},
        "operator": {"custom"}}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Bad:
    path: Path
    check: str
    reason: str
    overlay: str | None

    def manifests(self) -> list[Manifest]:
        changes = checks.load(self.path.read_text())
        if self.overlay is None:
            return changes
        found = copy.deepcopy(_good(self.overlay))
        for change in changes:
            same = [m for m in found if fnmatch(checks.name(m), checks.name(change))]
            if same:
                change["metadata"].pop("name")
                renamed = change["metadata"].pop("renamed", None)
                lay_over(same[0], change)
                same[0]["metadata"]["name"] = renamed or same[0]["metadata"]["name"]
            elif "apiVersion" in change:
                found.append(change)
            else:
                raise ValueError(f"{self.path}: over {self.overlay} there is no {checks.name(change)}")
        return found

    def refusals(self) -> list[checks.Refusal]:
        return checks.refusals(self.manifests(), whole=self.overlay is not None)

    def is_refused_rightly(self, refusals: list[checks.Refusal]) -> bool:
        """The expected reason is there, and no other check found anything."""
        expected = [r for r in refusals if r.check == self.check and self.reason in r.message]
        return bool(expected) and {r.check for r in refusals} <= {self.check, *ALSO.get(self.check, ())}


def all_bad() -> list[Bad]:
    """Raises ValueError for a file that does not say why it is bad."""
    found = []
    for path in sorted(FOLDER.glob("*.yaml")):
        if (first := _FIRST.match(path.read_text())) is None:
            raise ValueError(f"{path}: the first line is to be '# CHECK: REASON'")
        found.append(Bad(path, first["check"], first["reason"], first["overlay"]))
    return found


@cache
def _good(overlay: str) -> list[Manifest]:
    return sets.overlay(overlay)


def lay_over(good: Manifest, change: Manifest) -> None:
    """In place."""
    for key, value in change.items():
        if key == "serveConfigV2" and isinstance(value, dict):
            document = yaml.safe_load(good[key])
            lay_over(document, value)
            good[key] = yaml.safe_dump(document, sort_keys=False)
        elif value is None:
            good.pop(key, None)
        elif isinstance(value, dict) and isinstance(good.get(key), dict):
            lay_over(good[key], value)
        elif isinstance(value, list) and isinstance(good.get(key), list) and (named := _name_key(value)):
            _lay_list(good[key], value, named)
        else:
            good[key] = value


def _name_key(entries: list[Any]) -> str | None:
    return next((n for n in NAMES if entries and all(isinstance(e, dict) and n in e for e in entries)), None)


def _lay_list(good: list[Any], changes: list[Any], named: str) -> None:
    for change in changes:
        same = [entry for entry in good if entry.get(named) == change[named]]
        if same:
            lay_over(same[0], change)
        else:
            good.append(change)
