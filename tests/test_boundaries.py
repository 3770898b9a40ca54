"""The rooms of the design import one way; read from the source, so that no import can hide behind a function."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1] / "serve_app"
FOUNDATION = {"errors", "schema", "settings", "spec"}
# room -> rooms it may import
ALLOWED = {
    "errors": set(),
    "schema": set(),
    "settings": set(),
    "spec": {"schema"},
    "storage": FOUNDATION,
    "openai": FOUNDATION,
    "models": FOUNDATION,
    "engine": FOUNDATION | {"models"},
    "dispatch": FOUNDATION,
    "client": FOUNDATION | {"dispatch"},
    "driver": FOUNDATION | {"storage", "openai", "dispatch"},
    "workloads": FOUNDATION | {"client"},
    "serving": FOUNDATION | {"storage", "openai", "engine", "dispatch", "driver", "models"},
    "k8s": FOUNDATION,
    "cli": FOUNDATION | {"client", "workloads", "serving", "models", "k8s"},
}


def imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def modules() -> list[Path]:
    return [path for path in sorted(ROOT.rglob("*.py")) if path.name != "__init__.py"]


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(ROOT)))
def test_a_room_imports_only_the_rooms_below_it(path: Path) -> None:
    room = path.relative_to(ROOT).parts[0].removesuffix(".py")
    used = {name.split(".")[1] for name in imports(path) if name.startswith("serve_app.")}
    assert used <= ALLOWED[room] | {room}


def test_only_the_adapter_and_what_vllm_loads_import_vllm() -> None:
    users = {path.relative_to(ROOT) for path in modules() if any(n.split(".")[0] == "vllm" for n in imports(path))}
    assert users == {
        Path(f"engine/{name}.py")
        for name in ("vllm", "scheduler", "processes/queues", "processes/fork", "processes/timeline")
    }
