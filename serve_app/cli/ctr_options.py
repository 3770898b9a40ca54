"""Options of `serve-app ctr` as a study's fields."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from rich.console import Console

from serve_app.cli.common import stops
from serve_app.errors import BadSettings

if TYPE_CHECKING:
    from serve_app.client.populations import PopulationClient
    from serve_app.client.progress import JobProgress
    from serve_app.spec import JobStatus
    from serve_app.workloads.ctr.people.profile_file import ProfileFile
    from serve_app.workloads.ctr.statistics.calibration import Calibration
    from serve_app.workloads.ctr.study import Study

T = TypeVar("T")


def follow_jobs(client: PopulationClient, output: Console, run: Callable[[JobProgress], T]) -> T:
    """Run a study of several jobs and show its progress. Ctrl-C cancels the job under way."""
    from serve_app.client.progress import JobProgress

    progress = JobProgress(output)
    with stops(lambda: _cancelled(client, progress.status)), progress:
        return run(progress)


def _cancelled(client: PopulationClient, status: JobStatus | None) -> str:
    """Cancel the job; describe what remains."""
    from serve_app.errors import JobConflict

    if status is None:
        return "no job was submitted"
    with suppress(JobConflict):  # already ended
        client.cancel(status.id)
    return f"job {status.id} is cancelled; what has an answer stays (serve-app population list)"


def platform_context(platform: str, context: str, platforms: Path | None) -> str:
    """The user's own platform context; "" for a packaged platform. Raises BadSettings."""
    if context or platforms is None:
        return context
    from serve_app.workloads.ctr.asking.prompts import PLATFORMS, read_platforms

    known = {**PLATFORMS, **read_platforms(platforms)}
    if platform not in known:
        raise BadSettings(f"--ad-platform '{platform}' is unknown: use one of {', '.join(known)}")
    return known[platform]


def bank_name(bank: str, persona: str) -> str:
    """`--bank`, or the bank of `--persona`. Raises BadSettings."""
    if bank and persona:
        raise BadSettings("--persona: names a bank that comes with the package; leave it out with --bank")
    if persona not in ("", "default", "rich"):
        raise BadSettings(f"--persona '{persona}' is unknown: use default or rich")
    return bank or persona or "default"


def profile_file(
    path: Path | None, mapped: list[str], id_column: str, weights: str, describe: str, require: list[str]
) -> ProfileFile | None:
    """The value of `--profiles` and related options. Raises BadSettings."""
    from serve_app.workloads.ctr.people.profile_file import ProfileFile

    if path is None:
        if idle := [flag for flag, value in (("--map", mapped), ("--id-column", id_column), ("--weights", weights),
                                             ("--describe", describe), ("--require", require)) if value]:  # fmt: skip
            raise BadSettings(f"{', '.join(idle)}: for a file of --profiles only")
        return None
    columns = {}
    for pair in mapped:
        name, equals, column = pair.partition("=")
        if not (name and equals and column):
            raise BadSettings(f"--map {pair}: write name=column, as in age=Age")
        if name in columns:
            raise BadSettings(f"--map {pair}: '{name}' is mapped twice")
        columns[name] = column
    return ProfileFile(path, columns, id_column, weights, describe, tuple(require))


def make_study(**fields: Any) -> Study:
    """The study with its people. Raises BadSettings before anything starts."""
    from serve_app.workloads.ctr.study import Study

    study = Study(**fields)
    if not study.streamed:
        study.people  # noqa: B018  # reads and samples: may raise
    return study


def read_calibration(path: Path | None, study: Study | None) -> Calibration | None:
    """The file of --calibration. Raises BadSettings if it does not fit the study."""
    from serve_app.workloads.ctr.statistics.calibration import load_calibration

    if path is None:
        return None
    found = load_calibration(path)
    if study is not None:
        found.check_question(study.question.workload, study.platform)
    return found
