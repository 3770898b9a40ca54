"""Label a dataset by a model's coherence, and evaluate. The Python API of `serve-app icm run`:

    labelling = Labelling(testbed="reviews", batch_size=16, settings=SearchSettings(iterations=60, num_seed=4))
    with connect("http://127.0.0.1:8000") as served:
        report = labelling.run(served, Path("runs/icm"))
    print(report.finding.confidence, report.write(Path("runs/icm")))

A run continues from its folder's checkpoint.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from serve_app.errors import BadSettings, ServeAppError
from serve_app.spec import Provider
from serve_app.workloads.icm.evaluation.comparison import compare
from serve_app.workloads.icm.evaluation.gold import Accuracy, Gold, accuracy, accuracy_by_iteration
from serve_app.workloads.icm.examples.dataset import Dataset, LabelWords
from serve_app.workloads.icm.examples.testbeds import BUNDLED, load
from serve_app.workloads.icm.report import ICM, Report
from serve_app.workloads.icm.schedule import SearchSettings
from serve_app.workloads.icm.scoring.connect import ServedModel
from serve_app.workloads.icm.scoring.preflight import preflight
from serve_app.workloads.icm.search.finding import Finding, conclude
from serve_app.workloads.icm.search.runs import Run
from serve_app.workloads.icm.search.search import Search

# Search settings by their names in commands and checkpoints.
SEARCH = {
    "variant": "variant",
    "alpha": "alpha",
    "fixed_alpha": "fixed_alpha",
    "K": "iterations",
    "num_seed": "num_seed",
    "seed": "seed",
    "speculate": "speculate",
}
# spec.Provider's fields likewise.
PROVIDER = {
    "provider_url": "base_url",
    "model": "model",
    "provider_key_env": "api_key_env",
    "batch_rows": "batch_rows",
    "concurrency": "concurrency",
    "requests_per_minute": "requests_per_minute",
    "tokens_per_minute": "tokens_per_minute",
}
# Changing these makes another run.
FIXED = ("testbed", "data", "words", "variant", "alpha", "fixed_alpha", "batch_size", "num_seed", "seed")


@dataclass(frozen=True, kw_only=True)
class Labelling:
    """The examples, search and model, and what labels are compared with.

    `gold` (by default the bundled data's) is for evaluation only. `words` are the label words, separated by a comma,
    label 0 first; "" takes the testbed's. `baselines` run for `baseline_seeds` draws of `shots` demonstrations. `model`
    selects one of a server's.

    Raises BadSettings naming the command's flag, also for unreadable files.
    """

    settings: SearchSettings = field(default_factory=SearchSettings)
    testbed: str = "reviews"
    data: Path | None = None
    gold: Path | None = None
    words: str = ""
    batch_size: int = 256
    baselines: bool = True
    shots: int = 32
    baseline_seeds: int = 3
    model: str | None = None
    provider: Provider | None = None

    def __post_init__(self) -> None:
        self._gold  # noqa: B018  # what is wrong with data and gold labels is told before the search

    @cached_property
    def dataset(self) -> Dataset:
        return load(self.testbed, self.data, words=_words(self.words)).sample(self.batch_size, self.settings.seed)

    @cached_property
    def _gold(self) -> Gold | None:
        """The given or bundled gold labels. Raises BadSettings for an example without one."""
        path = self.gold or BUNDLED / f"{self.testbed}.gold.jsonl"
        dataset = self.dataset
        if self.gold is None and (self.data or not path.is_file()):
            return None
        gold = Gold.read(path)
        gold.of(dataset)
        return gold

    def run(
        self,
        served: ServedModel,
        folder: Path,
        *,
        on_step: Callable[[int, int], None] = lambda done, total: None,
        tell: Callable[[str], None] = lambda message: None,
    ) -> Report:
        """Search, or continue in `folder`; conclude; compare with any gold labels.

        `on_step` gets the done and total iterations. Raises BadSettings for a folder with another run, ScoringFailed,
        StoreError.
        """
        started = time.monotonic()
        dataset, settings, run = self.dataset, self.settings, Run(folder, served.name)
        state = run.begin(settings, dataset)
        tell(
            f"{len(dataset)} examples of {dataset.name}, {len(dataset.relations)} relations, {settings.variant} variant"
        )
        tell(f"the longest prompt: {preflight(dataset, settings, served.score)}")
        search = Search(dataset, settings, served.score, state)
        on_step(search.state.iteration, settings.iterations)
        for step in run.follow(search, self.asked):
            on_step(step.iteration, settings.iterations)
        finding = conclude(search)
        accuracies, curve = self._judge(served, finding, run, tell)
        return Report(
            asked=self.asked,
            dataset=dataset,
            finding=finding,
            steps=run.steps(),
            accuracies=accuracies,
            curve=curve,
            wall_s=round(time.monotonic() - started, 2),
            model=served.name,
            simulated=served.simulated(),
        )

    def _judge(
        self, served: ServedModel, finding: Finding, run: Run, tell: Callable[[str], None]
    ) -> tuple[dict[str, Accuracy], Sequence[tuple[int, float, int]]]:
        """Accuracy by method, and ICM's by iteration."""
        gold = self._gold
        if gold is None:
            return {}, []
        truth = gold.of(self.dataset)
        accuracies = {ICM: accuracy(bytes(label.label for label in finding.labels), truth)}
        if self.baselines:

            def skipped(name: str, error: ServeAppError) -> None:
                tell(f"{name} is left out: {error}")

            seeds = range(self.settings.seed, self.settings.seed + self.baseline_seeds)
            accuracies |= compare(self.dataset, served.score, truth, shots=self.shots, seeds=seeds, skipped=skipped)
        return accuracies, accuracy_by_iteration(run.load().start, run.steps(), gold)

    @property
    def asked(self) -> dict[str, Any]:
        """All settings as JSON, for checkpoints and reports; inverse of `of`."""
        provider = self.provider
        answering = {name: provider and getattr(provider, field) for name, field in PROVIDER.items()}
        return {
            "testbed": self.testbed,
            "data": self.data and str(self.data.absolute()),
            "gold": self.gold and str(self.gold.absolute()),
            "words": self.words,
            **{name: getattr(self.settings, field) for name, field in SEARCH.items()},
            "batch_size": self.batch_size,
            "baselines": self.baselines,
            "shots": self.shots,
            "baseline_seeds": self.baseline_seeds,
            **answering,
            "model": provider.model if provider else self.model,
        }

    @classmethod
    def of(cls, asked: Mapping[str, Any], settings: Mapping[str, Any] | None = None) -> Labelling:
        """From `asked`, with defaults for the rest. It overrides `settings`, further search settings. Raises
        BadSettings naming the flag.
        """
        searched = {**(settings or {}), **{field: asked[name] for name, field in SEARCH.items() if name in asked}}
        answering = {field: asked[name] for name, field in PROVIDER.items() if asked.get(name) not in (None, "")}
        external = bool(asked.get("provider_url"))
        plain = ("testbed", "words", "batch_size", "baselines", "shots", "baseline_seeds")
        return cls(
            settings=_settings(searched),
            provider=_provider(answering) if external else None,
            model=None if external else asked.get("model") or None,
            data=Path(asked["data"]) if asked.get("data") else None,
            gold=Path(asked["gold"]) if asked.get("gold") else None,
            **{name: asked[name] for name in plain if name in asked},
        )

    @classmethod
    def resume(cls, folder: Path, changed: Mapping[str, Any]) -> Labelling:
        """The labelling in `folder` with `changed` settings (names as in `asked`). Raises BadSettings for a change to
        another run or fewer iterations than made; StoreError without a run.
        """
        checkpoint = Run(folder).load()
        for name in FIXED:
            if name in changed and changed[name] != checkpoint.asked.get(name):
                raise BadSettings(
                    f"{_flag(name)} {changed[name]}: the run in {folder} was begun with {checkpoint.asked.get(name)}; "
                    "leave it out, or begin another run by --out"
                )
        done = checkpoint.state.iteration
        if changed.get("K", done) < done:
            raise BadSettings(f"{_flag('K')} {changed['K']}: the run in {folder} has made {done} iterations already")
        asked = {**checkpoint.asked, **changed}
        limits = [_flag(name) for name in PROVIDER if name in changed and name not in ("model", "provider_url")]
        if limits and not asked.get("provider_url"):
            raise BadSettings(f"{', '.join(limits)}: only for an external --provider")
        return cls.of(asked, checkpoint.settings)


def _flag(name: str) -> str:
    spelled = {"K": "iterations", "provider_key_env": "api_key_env", "base_url": "provider"}.get(name, name)
    return f"--{spelled.replace('_', '-')}"


def _settings(values: Mapping[str, Any]) -> SearchSettings:
    try:
        settings = SearchSettings.model_validate(values)
    except ValidationError as error:
        raise _named(error) from error
    _ = settings.alphas  # names an unknown variant
    return settings


def _provider(values: Mapping[str, Any]) -> Provider:
    try:
        return Provider.model_validate(values)
    except ValidationError as error:
        raise _named(error) from error


def _named(error: ValidationError) -> BadSettings:
    problems = (f"{_flag(str(one['loc'][0]))} {one['input']}: {one['msg']}" for one in error.errors())
    return BadSettings("; ".join(problems))


def _words(words: str) -> LabelWords | None:
    if not words:
        return None
    parts = [part.strip() for part in words.split(",")]
    if len(parts) != 2 or not all(parts) or parts[0] == parts[1]:
        raise BadSettings(f"--words '{words}': give two different words and a comma, the one for label 0 first")
    return LabelWords(f" {parts[0]}", f" {parts[1]}")
