"""A job's progress on a terminal: a bar with rate and ETA, or a line now and then where there is no terminal."""

from __future__ import annotations

import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskProgressColumn, TextColumn

from serve_app.spec import JobStatus

LINE_EVERY_S = 5.0


class JobProgress:
    """Context manager; call it with each status."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TaskProgressColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[pace]}"),
            console=console,
            disable=not console.is_terminal,
        )
        self._task = self._progress.add_task("queued", total=None, pace="")
        self._last_line = ""
        self._last_line_at = 0.0

    def __enter__(self) -> JobProgress:
        self._progress.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.__exit__(kind, error, trace)

    def __call__(self, status: JobStatus) -> None:
        """Show the status."""
        done = status.done
        eta = f", {status.eta_s:.0f} s left" if status.eta_s else ""
        pace = f"{status.rows_per_s:.1f} rows/s{eta}" if done else ""
        what = status.message or f"{status.replicas_chosen} replica(s)"
        failed = f", {status.failed} failed" if status.failed else ""
        self._progress.update(
            self._task, description=f"{what}{failed}", completed=done, total=status.total or None, pace=pace
        )
        if not self._console.is_terminal:
            self._line(f"{what}{failed}: {done}/{status.total or '?'} rows  {pace}".rstrip())

    def _line(self, line: str) -> None:
        due = time.monotonic() - self._last_line_at >= LINE_EVERY_S
        if line != self._last_line and (due or not self._last_line):
            self._console.print(line, highlight=False)
            self._last_line, self._last_line_at = line, time.monotonic()
