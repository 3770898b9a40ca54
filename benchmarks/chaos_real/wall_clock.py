"""The wall clock of a stack's processes, which libfaketime moves while they run; the steady clock stays."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

# In the package of that name.
LIBRARY = "vendor/libfaketime/src/libfaketime.so.1"


class WallClock:
    """`environment` is that of processes whose clock `step` moves."""

    def __init__(self, folder: Path) -> None:
        self._file = folder / "clock"
        self._offset_s = 0.0
        self._file.write_text("+0\n")

    @property
    def environment(self) -> dict[str, str]:
        """Raises SystemExit without libfaketime."""
        spec = find_spec("libfaketime")
        library = Path(spec.origin).parent / "vendor/libfaketime/src/libfaketime.so.1" if spec and spec.origin else None
        if library is None or not library.exists():
            raise SystemExit(
                "there is no libfaketime: `make chaos-real` installs it, or pip install --no-deps libfaketime"
            )
        return {
            "LD_PRELOAD": str(library),
            "FAKETIME_TIMESTAMP_FILE": str(self._file),
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
            "FAKETIME_CACHE_DURATION": "1",
        }

    def step(self, seconds: float) -> Callable[[], None]:
        """Undone by stepping back, a step of its own."""
        self._move(seconds)
        return lambda: self._move(-seconds)

    def _move(self, seconds: float) -> None:
        self._offset_s += seconds
        self._file.write_text(f"{self._offset_s:+.0f}\n")
