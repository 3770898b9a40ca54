"""Shows a job's progress as a bar, or without a terminal as occasional lines."""

from __future__ import annotations

import time
from collections.abc import Iterable
from types import TracebackType

from rich.console import Console, RenderableType
from rich.progress import BarColumn, Progress, TextColumn
from rich.text import Text

from serve_app.spec import JobStatus

LINE_EVERY_S = 5.0


class JobProgress:
    """Context manager; call it with each status."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._bar = _Bar(
            BarColumn(bar_width=20), TextColumn("{task.fields[line]}"), console=console, disable=not console.is_terminal
        )
        self.status: JobStatus | None = None
        self._task = self._bar.add_task("", total=None, line="")
        self._last_line = ""
        self._last_line_at = 0.0

    def __enter__(self) -> JobProgress:
        self._bar.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.__exit__(kind, error, trace)

    def __call__(self, status: JobStatus) -> None:
        self.status = status
        line, below = progress_line(status), details_line(status)
        self._bar.below = below
        self._bar.update(self._task, completed=status.done, total=status.total or None, line=line)
        if not self._console.is_terminal:
            self._plain("; ".join(filter(None, (line, below))), last=not status.state.active)

    def _plain(self, line: str, *, last: bool) -> None:
        due = last or not self._last_line or time.monotonic() - self._last_line_at >= LINE_EVERY_S
        if due and line != self._last_line:
            self._console.print(line, highlight=False, markup=False)
            self._last_line, self._last_line_at = line, time.monotonic()


class _Bar(Progress):
    below = ""

    def get_renderables(self) -> Iterable[RenderableType]:
        yield from super().get_renderables()
        if self.below:
            yield Text(self.below, style="dim")


def progress_line(status: JobStatus) -> str:
    """Rows, rate and time left."""
    if not status.total:
        return str(status.state)
    parts = [f"{100 * status.done // status.total} %, {status.done:,} of {status.total:,} rows"]
    if status.rows_per_s:
        parts.append(f"{status.rows_per_s:,.1f} rows/s")
    if status.eta_s is not None and status.done < status.total:
        parts.append(f"{duration(status.eta_s)} left")
    return ", ".join(parts)


def details_line(status: JobStatus) -> str:
    """Missing rows, replicas, and the driver's message."""
    parts = []
    if unanswered := status.failed + status.invalid:
        parts.append(f"{unanswered:,} without an answer")
    if status.replicas_chosen:
        parts.append(f"{status.replicas_chosen} replica{'s' if status.replicas_chosen > 1 else ''}")
    return ", ".join(filter(None, (*parts, status.message)))


def duration(seconds: float) -> str:
    """As "45 s", "12 min" or "3 h 05 min"."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02d} min"
