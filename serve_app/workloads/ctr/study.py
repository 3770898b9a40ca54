"""One ad asked about one population. The Python API of the click-through workload:

from serve_app.client.populations import PopulationClient
from serve_app.workloads.ctr.study import Study

study = Study(ad="New smartphone launch", platform="tiktok", size=1000, swap="order")
result = study.run(PopulationClient("http://127.0.0.1:8000"))
print(result.rates.ctr, result.label_bias, result.table.to_pylist()[0])
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, fields, replace
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

from serve_app.errors import BadSettings
from serve_app.schema import Outcome, Row
from serve_app.spec import JobSpec, JobStatus
from serve_app.workloads.ctr.asking.answers import read_answers
from serve_app.workloads.ctr.asking.frames import Swap
from serve_app.workloads.ctr.asking.prompts import Mode, Question
from serve_app.workloads.ctr.people.bank import PACKAGED, Bank, Inline, load_bank
from serve_app.workloads.ctr.people.profile_file import People, ProfileFile, read_people
from serve_app.workloads.ctr.people.profiles import Profile, draw_profiles, generate_profiles
from serve_app.workloads.ctr.people.sample import Allocation, Stratifier, draw_sample
from serve_app.workloads.ctr.people.summary import PeopleSummary
from serve_app.workloads.ctr.result import Result

SIZE = 1000
# A stratified sample of a bank is drawn from this many times its size, to include rare strata.
POOL = 20
# That sample is held in memory, some 10 KB for each person that is asked for.
MOST_STRATIFIED = 100_000
# More than there are, and few enough to count their rows.
MOST_PEOPLE = 10**12


class Client(Protocol):
    """What a study needs of `client.populations.PopulationClient`."""

    def submit(self, spec: JobSpec) -> str: ...

    def status(self, job_id: str) -> JobStatus: ...

    def resume(self, job_id: str) -> JobStatus: ...

    def wait(self, job_id: str, on_status: Callable[[JobStatus], None] = ...) -> JobStatus: ...

    def outcomes(self, job_id: str) -> Iterator[Outcome]: ...


@dataclass(frozen=True, kw_only=True)
class Study:
    """Who is asked what. The first five fields are `prompts.Question`'s.

    People come from a bank's seed or a file (`profiles`). `size` defaults to 1,000 or the whole file. Parts of files
    and strata (`sample.Stratifier.parse`) are drawn by `sample.draw_sample`. Without strata, a bank's n-th person does
    not depend on `size`.

    Raises BadSettings naming the command's flag.
    """

    ad: str
    platform: str = Question.platform
    context: str = Question.context
    mode: Mode = Question.mode
    swap: Swap = Question.swap
    size: int | None = None
    seed: int = 42
    bank: str | Path | Inline | Bank = "default"
    profiles: ProfileFile | None = None
    strata: tuple[str, ...] = ()
    allocation: Allocation = "proportional"

    def __post_init__(self) -> None:
        self.question  # noqa: B018  # raises
        if self.size is not None and self.size < 1:
            raise BadSettings("--population-size must be at least 1")
        most = MOST_STRATIFIED if self.strata and self.profiles is None else MOST_PEOPLE
        if self.size is not None and self.size > most:
            raise BadSettings(f"--population-size must be at most {most:,}{' with --stratify' if self.strata else ''}")
        if self.seed < 0:
            raise BadSettings("--seed must be at least 0")
        if self.allocation not in ("proportional", "equal"):
            raise BadSettings(f"--allocation '{self.allocation}' is unknown: use proportional or equal")
        self._stratifiers  # noqa: B018  # raises
        self.people_bank  # noqa: B018  # raises

    @cached_property
    def question(self) -> Question:
        return Question(self.ad, self.platform, self.context, self.mode, self.swap)

    @cached_property
    def people_bank(self) -> Bank:
        """The bank of the people, or of a file's column meanings."""
        return load_bank(self.bank)

    @cached_property
    def _stratifiers(self) -> tuple[Stratifier, ...]:
        return tuple(map(Stratifier.parse, self.strata))

    @property
    def streamed(self) -> bool:
        """Whether people come one by one from a seed, without holding them."""
        return self.profiles is None and not self.strata

    @cached_property
    def people(self) -> list[Profile]:
        """Everybody, in order; a file's bad rows last. Raises BadSettings."""
        size = SIZE if self.size is None else self.size
        if self.streamed:
            return generate_profiles(size, self.seed, self.people_bank)
        if self._read is None:
            pool = generate_profiles(POOL * size, self.seed, self.people_bank)
            return draw_sample(pool, size, self.seed, by=self._stratifiers, allocation=self.allocation)
        found = self._read.profiles
        good, bad = [p for p in found if p.error is None], [p for p in found if p.error is not None]
        if self.size is not None or self.strata:
            drawn = draw_sample(
                good, self.size or len(good), self.seed, by=self._stratifiers, allocation=self.allocation
            )
            return drawn + bad
        mean = sum(person.weight for person in good) / len(good)
        return [replace(person, weight=person.weight / mean) for person in good] + bad

    @property
    def people_summary(self) -> PeopleSummary | None:
        """How the file was read; None for a bank. Raises BadSettings."""
        return None if self._read is None else self._read.summary

    @cached_property
    def _read(self) -> People | None:
        return None if self.profiles is None else read_people(self.profiles, self.people_bank)

    def rows(self, start: int = 0) -> Rows:
        """Rows from `start` (from 0). A person's rows are adjacent."""
        return Rows(self, start)

    def submit(self, client: Client, **job: Any) -> str:
        """Queue the study; returns the job's id. `job`: further fields of `spec.JobSpec` (model, provider, …)."""
        return client.submit(self.spec(**job))

    def spec(self, **job: Any) -> JobSpec:
        """The study as a job. The driver draws a bank's people; a file's are sent."""
        fields = {**self.question.job(external="provider" in job), "metadata": self.metadata, **job}
        if self.profiles is None:
            return JobSpec.parse({"generator": {"name": "ctr", "arguments": self.arguments}, **fields})
        return JobSpec.of(self.rows(), **fields)

    def run(self, client: Client, on_status: Callable[[JobStatus], None] = lambda status: None, **job: Any) -> Result:
        """Submit the study, wait for its end, and read the answers."""
        return self.follow(client, self.submit(client, **job), on_status)

    def follow(
        self, client: Client, job_id: str, on_status: Callable[[JobStatus], None] = lambda status: None
    ) -> Result:
        """Wait for a job of this study, and read its answers."""
        status = client.wait(job_id, on_status)
        return self.result(status, client.outcomes(job_id))

    def result(self, status: JobStatus, outcomes: Iterable[Outcome]) -> Result:
        return Result(status, tuple(read_answers(self.question, self.people, outcomes)))

    @property
    def arguments(self) -> dict[str, Any]:
        """JSON arguments of the generator `ctr` (`generate.rows`): no path, a user's bank as a document."""
        same = ("ad", "platform", "context", "mode", "swap", "seed", "allocation")
        return {
            **{name: getattr(self, name) for name in same},
            "size": SIZE if self.size is None else self.size,
            "bank": self.bank if self.bank in PACKAGED else self.people_bank.model_dump(mode="json"),
            "strata": list(self.strata),
        }

    @property
    def metadata(self) -> dict[str, Any]:
        """The study as JSON, for resuming its job; see `from_metadata`."""
        said = self.arguments
        if self.profiles is None:
            return said
        file = asdict(replace(self.profiles, path=self.profiles.path.absolute()))
        return {**said, "size": self.size, "profiles": {**file, "path": str(file["path"])},
                "profiles_sha256": self.profiles.digest()}  # fmt: skip

    @classmethod
    def of_job(cls, client: Client, job_id: str) -> Study:
        """A job's study. Raises JobNotFound, and BadSettings for other jobs."""
        said = client.status(job_id).metadata
        if "ad" not in said or "group" in said:
            raise BadSettings(f"--resume: job '{job_id}' was not submitted by `serve-app ctr predict`")
        return cls.from_metadata(said)

    @classmethod
    def from_metadata(cls, said: Mapping[str, Any]) -> Study:
        """Inverse of `metadata`. Raises BadSettings for a missing or changed profile file."""
        known = {field.name: said[field.name] for field in fields(cls) if field.name in said}
        if file := known.get("profiles"):
            known["profiles"] = ProfileFile(
                **{**file, "path": Path(file["path"]), "require": tuple(file.get("require", ()))}
            )
            if known["profiles"].digest() != said["profiles_sha256"]:
                raise BadSettings(f"--profiles {file['path']} has changed since the job was submitted")
        return cls(**{**known, "strata": tuple(known.get("strata", ()))})


@dataclass(frozen=True)
class Rows:
    """Rows [start, …) of a study, recreated in each pass."""

    study: Study
    start: int

    def __len__(self) -> int:
        return max(0, self._people * self._each - self.start)

    def __iter__(self) -> Iterator[Row]:
        first, skip = divmod(self.start, self._each)
        asked = (row for person in self._from(first) for row in self.study.question.rows(person))
        return islice(asked, skip, skip + len(self))

    @property
    def _each(self) -> int:
        return len(self.study.question.row_ids(""))

    @property
    def _people(self) -> int:
        if self.study.streamed:
            return SIZE if self.study.size is None else self.study.size
        return len(self.study.people)

    def _from(self, first: int) -> Iterator[Profile]:
        if self.study.streamed:
            return draw_profiles(self.study.seed, first, self.study.people_bank)
        return iter(self.study.people[first:])
