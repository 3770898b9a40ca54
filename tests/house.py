"""`python -m tests.house`: whether the rooms are still rooms: folders and files small enough to read, and no circles.

Counts files a folder, lines a file, circles of modules that import each other, and the README's lines. What is over
its bound is named here with its reason, and a reason that is no longer needed counts as a violation too. Who may import
whom is in pyproject.toml (`lint-imports`).
"""

from __future__ import annotations

import argparse
import ast
import json
import sys
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGES = ("serve_app", "benchmarks", "tests")
MOST_FILES, MOST_LINES, MOST_README_LINES = 14, 300, 100
# Read by programs, or a list of cases: their length tells nothing.
DATA = {".jsonl", ".json", ".csv", ".parquet", ".md"}
DATA_FOLDERS = {"tests/k8s/bad"}

# path -> why it may be longer
LONG: dict[str, str] = {
    "benchmarks/driver.py": "one module an experiment: what is run, measured and printed, in that order",
    "benchmarks/ingress.py": "one module an experiment: what is run, measured and printed, in that order",
    "tests/system/test_cluster.py": "one cluster for all of it, whose last tests end it: their order matters",
    "tests/system/test_online.py": "one cluster for all of it, which the last test deploys anew",
}


def python_files(root: Path = ROOT) -> list[Path]:
    return [path for package in PACKAGES for path in sorted((root / package).rglob("*.py"))]


def files(root: Path = ROOT) -> list[Path]:
    """All that somebody wrote, data aside."""
    found = [path for package in PACKAGES for path in sorted((root / package).rglob("*")) if path.is_file()]
    return [
        path
        for path in found
        if "__pycache__" not in path.parts
        and path.suffix not in DATA
        and path.parent.relative_to(root).as_posix() not in DATA_FOLDERS
    ]


def crowded(paths: Iterable[Path]) -> dict[str, int]:
    """Folders with more than MOST_FILES files."""
    counts = Counter(path.parent for path in paths)
    return {str(folder): number for folder, number in counts.items() if number > MOST_FILES}


def long(paths: Iterable[Path]) -> dict[str, int]:
    """Files of more than MOST_LINES lines."""
    lengths = {str(path): len(path.read_bytes().splitlines()) for path in paths}
    return {path: lines for path, lines in lengths.items() if lines > MOST_LINES}


def imports(path: Path) -> set[str]:
    """What a module imports, inside its functions too: modules, and the names in them as if they were modules."""
    found = set()
    for node in ast.walk(ast.parse(path.read_bytes())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def graph(root: Path = ROOT) -> dict[str, set[str]]:
    """Our modules, and those of ours that each of them imports."""
    modules = {".".join(path.relative_to(root).with_suffix("").parts): path for path in python_files(root)}
    modules = {name.removesuffix(".__init__"): path for name, path in modules.items()}
    return {name: (imports(path) & modules.keys()) - {name} for name, path in modules.items()}


def circles(imported: Mapping[str, set[str]]) -> list[list[str]]:
    """Groups of modules that import each other, directly or not (Tarjan's strongly connected components)."""
    order: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(module: str) -> None:
        order[module] = low[module] = len(order)
        stack.append(module)
        for other in imported[module]:
            if other not in order:
                visit(other)
            if other in stack:
                low[module] = min(low[module], low[other])
        if low[module] == order[module]:
            at = stack.index(module)
            if len(stack) - at > 1:
                found.append(sorted(stack[at:]))
            del stack[at:]

    for module in imported:
        if module not in order:
            visit(module)
    return found


def measure(root: Path = ROOT) -> dict[str, object]:
    """All figures; `violations` are sentences, and there should be none."""
    ours = [path.relative_to(root) for path in files(root)]
    too_many, too_long = crowded(ours), long(root / path for path in ours)
    too_long = {Path(path).relative_to(root).as_posix(): lines for path, lines in too_long.items()}
    rounds = circles(graph(root))
    violations = [
        *(f"{folder} has {number} files, more than {MOST_FILES}" for folder, number in too_many.items()),
        *(f"{path} has {n} lines, more than {MOST_LINES}" for path, n in too_long.items() if path not in LONG),
        *(f"{path} needs no exception any more" for path in LONG if path not in too_long),
        *(f"a circle: {' <-> '.join(one)}" for one in rounds),
    ]
    return {
        "files": len(ours),
        "most_files_in_a_folder": max(
            sum(path.parent == folder for path in ours) for folder in {p.parent for p in ours}
        ),
        "files_over_300_lines": too_long,
        "exceptions": {path: reason for path, reason in LONG.items() if path in too_long},
        "circles": len(rounds),
        "readme_lines": len((root / "README.md").read_bytes().splitlines()),
        "violations": violations,
    }


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.house", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    options = parser.parse_args()
    figures = measure()
    violations = figures["violations"]
    assert isinstance(violations, list)
    rows = [
        ("files", figures["files"], ""),
        ("files in the fullest folder", figures["most_files_in_a_folder"], f"at most {MOST_FILES}"),
        (
            "files longer than allowed",
            len(long(files())) - len(LONG),
            f"at most {MOST_LINES} lines; {len(LONG)} excepted",
        ),
        ("circles of imports", figures["circles"], "none"),
        ("README lines", figures["readme_lines"], f"aim: {MOST_README_LINES}"),
    ]
    for name, value, bound in rows:
        print(f"{name:30} {value!s:>6}  {bound}")
    for violation in violations:
        print(f"  {violation}")
    line = json.dumps(figures)
    if options.json:
        options.json.write_text(line + "\n")
    print(line)
    return 1 if violations else 0


if __name__ == "__main__":
    sys.exit(main())
