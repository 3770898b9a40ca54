"""The check of the rooms finds what it is there to find, and finds nothing of it here."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests import house


def folder(root: Path, **texts: str) -> Path:
    for package in house.PACKAGES:
        (root / package).mkdir()
    (root / "README.md").write_text("")
    for name, text in texts.items():
        path = root / "serve_app" / f"{name}.py"
        path.write_text(text)
    return root


def violations(root: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.setattr(house, "LONG", {})
    found = house.measure(root)["violations"]
    assert isinstance(found, list)
    return found


def test_there_are_no_violations_here() -> None:
    assert house.measure()["violations"] == []


def test_imports_keep_to_the_contracts() -> None:
    """As `make lint` does, for whoever runs the tests alone."""
    command = [str(Path(sys.executable).with_name("lint-imports")), "--no-cache"]
    done = subprocess.run(command, cwd=house.ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout


def test_a_full_folder_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = folder(tmp_path, **{f"m{i}": "" for i in range(house.MOST_FILES + 1)})
    assert violations(root, monkeypatch) == ["serve_app has 15 files, more than 14"]


def test_a_long_file_is_named_unless_it_is_excepted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = folder(tmp_path, long="x = 1\n" * 301, short="x = 1\n" * 300)
    assert violations(root, monkeypatch) == ["serve_app/long.py has 301 lines, more than 300"]
    monkeypatch.setattr(house, "LONG", {"serve_app/long.py": "a reason"})
    assert house.measure(root)["violations"] == []


def test_an_exception_that_is_not_needed_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = folder(tmp_path, short="x = 1\n")
    monkeypatch.setattr(house, "LONG", {"serve_app/short.py": "it was long"})
    assert house.measure(root)["violations"] == ["serve_app/short.py needs no exception any more"]


def test_a_circle_is_named_though_an_import_hides_in_a_function(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = folder(
        tmp_path,
        one="from serve_app.two import x\n",
        two="from serve_app import three\n",
        three="def f():\n    import serve_app.one\n",
        four="from serve_app import one\n",
    )
    assert violations(root, monkeypatch) == ["a circle: serve_app.one <-> serve_app.three <-> serve_app.two"]
