import io

import pytest
from rich.console import Console
from rich.text import Text

from serve_app.client.progress import JobProgress, duration, progress_line
from serve_app.spec import JobState, JobStatus

RUNNING = JobStatus(
    id="j", state=JobState.RUNNING, total=20_000, ok=1990, failed=10, rows_per_s=31.25, eta_s=576.0, replicas_chosen=2
)


@pytest.mark.parametrize(
    ("seconds", "said"), [(0.4, "0 s"), (89, "89 s"), (91, "2 min"), (3599, "60 min"), (11_100, "3 h 05 min")]
)
def test_times_are_said_as_people_say_them(seconds: float, said: str) -> None:
    assert duration(seconds) == said


def test_a_line_has_share_rows_rate_and_time_left() -> None:
    assert progress_line(RUNNING) == "10 %, 2,000 of 20,000 rows, 31.2 rows/s, 10 min left"
    ended = RUNNING.model_copy(update={"state": JobState.CANCELLED, "eta_s": None})
    assert progress_line(ended) == "10 %, 2,000 of 20,000 rows, 31.2 rows/s"
    assert progress_line(JobStatus(id="j", state=JobState.QUEUED)) == "queued"


def test_a_message_stands_below_the_bar_and_hides_nothing() -> None:
    screen = io.StringIO()
    with JobProgress(Console(file=screen, force_terminal=True, width=80)) as progress:
        progress(RUNNING.model_copy(update={"message": "the store does not answer"}))
    bar, below = Text.from_ansi(screen.getvalue()).plain.strip().splitlines()[-2:]
    assert bar.startswith("━━")
    assert bar.rstrip().endswith("10 %, 2,000 of 20,000 rows, 31.2 rows/s, 10 min left")
    assert below == "10 without an answer, 2 replicas, the store does not answer"


def test_a_pipe_gets_one_plain_line_at_a_time_and_the_last_one_always() -> None:
    piped = io.StringIO()
    with JobProgress(Console(file=piped, width=80, soft_wrap=True)) as progress:
        for ok in range(1000, 1100):
            progress(RUNNING.model_copy(update={"ok": ok}))
        progress(RUNNING.model_copy(update={"ok": 19_990, "state": JobState.COMPLETED, "eta_s": None}))
    lines = piped.getvalue().splitlines()
    assert len(lines) == 2
    assert lines[0].startswith("5 %, 1,010 of 20,000 rows")
    assert lines[1].startswith("100 %, 20,000 of 20,000 rows")
