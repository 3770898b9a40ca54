"""ICM on real replicas: `python -m benchmarks.icm --json out.json [--quick]`.

Speed: all leave-one-out prompts of a labelling in one call and in the tree's order, against one call a prompt in the
examples' order, as the published code asks; and against one call a prompt in the tree's order, which is what the call
alone gains. In turns, each on labels of its own, so that no side finds another's prompts in the cache; the first pass
is warm-up; the median over passes is reported. The gain grows with the number of examples (the published 4.7 is for
256), so it is measured for two, and the headline is the larger's. Cache: share of prompt tokens that the engine says it
took from its prefix cache, for labels it has not seen (cold) and after one label changed (warm), beside what a single
cache of unlimited room would have had. Resume: a search in one go, and the same stopped half-way and gone on with from
its checkpoint. Accuracy: ICM, the same with the other variant's objective, and the five baselines on a sample of the
bundled data for each seed, whatever it shows.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from benchmarks.common import console, keep_replicas_apart, machine, publish
from serve_app.client.populations import PopulationClient
from serve_app.client.replicas import ReplicaClient
from serve_app.dispatch.render import TokenRenderer
from serve_app.models.default import prepare
from serve_app.schema import Row, unpack_tokens
from serve_app.serving.launch.config import set_store
from serve_app.serving.launch.local import local_serve
from serve_app.workloads.icm.evaluation.comparison import RANDOM, compare
from serve_app.workloads.icm.evaluation.gold import Accuracy, Gold, accuracy, over_seeds
from serve_app.workloads.icm.examples.dataset import Dataset
from serve_app.workloads.icm.examples.labels import put
from serve_app.workloads.icm.examples.testbeds import BUNDLED, load
from serve_app.workloads.icm.report import ICM
from serve_app.workloads.icm.schedule import SearchSettings, stream
from serve_app.workloads.icm.scoring.prompts import Prompt, Prompts, question
from serve_app.workloads.icm.scoring.protocol import Scorer, Usage, ask
from serve_app.workloads.icm.scoring.scorers import ReplicaScorer
from serve_app.workloads.icm.scoring.sharing import PrefixCache
from serve_app.workloads.icm.search.finding import conclude
from serve_app.workloads.icm.search.runs import Run
from serve_app.workloads.icm.search.search import Search
from serve_app.workloads.icm.search.state import Step
from serve_app.workloads.icm.variants import VARIANTS

PORT = 8767
# What `make serve` has on CPU; see docs/explanation/decisions.md.
BLOCK = 32
SPEEDUP = "iteration_speedup_vs_one_call_per_prompt"
# Prompts of the iteration whose speed is the headline: as many as there is time for on two cores. 256 demonstrations of
# the reviews would also be longer than `max_model_len` in config.yaml.
QUICK_ITERATION, ITERATION = 64, 96
WARM_UP_PROMPTS = 8
PASSES = 2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, default=None, help="write the JSON line there too")
    parser.add_argument("--quick", action="store_true", help="24 examples, 2 seeds, 64 prompts; else 32, 3 and 96")
    parser.add_argument("--variant", default="paper", help="paper or original")
    parser.add_argument("--iterations", type=int, default=None, help="of each search; default 12 an example")
    args = parser.parse_args()
    size, seeds = (24, range(2)) if args.quick else (32, range(3))
    settings = SearchSettings(variant=args.variant, iterations=args.iterations or 12 * size)
    hardware = machine()
    with tempfile.TemporaryDirectory() as folder:
        config, log = write_config(Path(folder)), Path(folder) / "serve.log"
        with (
            local_serve(config, log=log, on_wait=console.print) as base_url,
            ReplicaScorer(ReplicaClient.connect()) as score,
        ):
            result = {
                "replicas": len(PopulationClient(base_url).replicas()),
                **speeds(score, (size, QUICK_ITERATION if args.quick else ITERATION)),
                **caching(score, size),
                **resuming(score, settings, Path(folder)),
                **accuracies(score, size, seeds, settings, Path(folder)),
            }
    result |= {"examples": size, "variant": args.variant, "iterations": settings.iterations, **hardware}
    report(result, args.json)


def write_config(folder: Path) -> Path:
    """config.yaml with a store and port of its own, and no health probe that would take the cores meanwhile."""
    document = yaml.safe_load(Path("config.yaml").read_text())
    document["applications"] = document["applications"][:2]
    document["http_options"]["port"] = PORT
    set_store(document, str(folder / "runs"))
    document["applications"][0]["deployments"][0]["health_check_period_s"] = 600
    keep_replicas_apart(document)
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(document))
    return path


def speeds(score: Scorer, sizes: Sequence[int]) -> dict[str, Any]:
    """One iteration's speed for each number of examples; the last one's is the headline."""
    found = {size: speed(score, size) for size in sizes}
    return {**found[sizes[-1]], "iteration_speedup_by_prompts": {size: one[SPEEDUP] for size, one in found.items()}}


def speed(score: Scorer, size: int) -> dict[str, Any]:
    """Seconds of one iteration's scoring in three ways, on new labels each."""
    data = load("reviews").sample(size, seed=100)
    taken: dict[str, list[float]] = {"one_call": [], "call_per_prompt": [], "call_per_prompt_example_order": []}
    for number in range(PASSES + 1):
        for way, (name, times) in enumerate(taken.items()):
            labels = random_labels(len(data), 1000 * size + 10 * number + way)
            make = in_example_order if name.endswith("example_order") else in_tree_order
            prompts = make(data, labels)[: WARM_UP_PROMPTS if number == 0 else None]
            started = time.perf_counter()
            for part in [prompts] if name == "one_call" else [[prompt] for prompt in prompts]:
                ask(score, part)
            times.append(time.perf_counter() - started)
        what = f"iteration of {size} prompts" if number else "warm-up"
        console.print(f"{what}, s: " + ", ".join(f"{name} {times[-1]:.2f}" for name, times in taken.items()))
    medians = {name: statistics.median(times[1:]) for name, times in taken.items()}
    return {
        SPEEDUP: round(medians["call_per_prompt_example_order"] / medians["one_call"], 3),
        "iteration_speedup_of_the_call_alone": round(medians["call_per_prompt"] / medians["one_call"], 3),
        **{f"iteration_s_{name}": round(value, 3) for name, value in medians.items()},
        **{f"iteration_s_{name}_passes": [round(one, 3) for one in times[1:]] for name, times in taken.items()},
        "prompts_per_iteration": len(data),
    }


def caching(score: Scorer, size: int) -> dict[str, Any]:
    """Shares of cached tokens: measured, and in a single cache with room for all."""
    data = load("reviews").sample(size, seed=200)
    renderer = TokenRenderer(str(prepare()))
    found: dict[str, list[float]] = {"cold": [], "warm": [], "cold_bound": [], "warm_bound": []}
    for number in range(PASSES):
        labels, cache = random_labels(len(data), 1000 + number), PrefixCacheOf(renderer)
        changed = put(labels, (number % len(data), 1 - labels[number % len(data)]))
        for kind, some in (("cold", labels), ("warm", changed)):
            prompts, usage = in_tree_order(data, some), Usage()
            ask(score, prompts, usage)
            found[kind].append(usage.cached_share or 0.0)
            found[f"{kind}_bound"].append(cache.share(prompts))
    return {f"cached_share_{kind}": round(statistics.fmean(shares), 4) for kind, shares in found.items()}


class PrefixCacheOf:
    """What a single cache with room for all would have of prompts, in tokens of the model."""

    def __init__(self, renderer: TokenRenderer) -> None:
        self._renderer, self._cache = renderer, PrefixCache(BLOCK)

    def share(self, prompts: Sequence[Prompt]) -> float:
        """Cached share, the prompts served in the order that shares most (by tokens, as the dispatch sorts them)."""
        rendered = self._renderer.prompts([Row("", prompt=prompt.text) for prompt in prompts])
        packed = sorted(prompt for prompt in rendered if isinstance(prompt, bytes))
        return self._cache.add([unpack_tokens(prompt) for prompt in packed]).share


def resuming(score: Scorer, settings: SearchSettings, folder: Path) -> dict[str, Any]:
    """Whether a search that was stopped half-way takes the same steps as one in one go."""
    data = load("reviews").sample(16, seed=300)
    settings = settings.model_copy(update={"iterations": 60, "seed": 5})
    half = settings.model_copy(update={"iterations": 30})
    traces = []
    for name, parts in (("whole", [settings]), ("cut", [half, settings])):
        for part in parts:
            run = Run(folder / name)
            list(run.follow(Search(data, part, score, run.begin(part, data)), {}))
        traces.append(Run(folder / name).steps())
    same = [decision(one) == decision(other) for one, other in zip(*traces, strict=True)]
    drift = max(abs(one.utility - other.utility) for one, other in zip(*traces, strict=True))
    return {
        "resume_identical": all(same),
        "resume_first_difference": None if all(same) else same.index(False) + 1,
        "resume_largest_difference_of_utility": drift,
    }


def decision(step: Step) -> tuple[Any, ...]:
    """What a step did, without the figures that an engine's rounding moves."""
    return step.iteration, step.example, step.label, step.changes, step.accepted


def accuracies(
    score: Scorer, size: int, seeds: Sequence[int], settings: SearchSettings, folder: Path
) -> dict[str, Any]:
    """ICM, its other variant and the baselines on the reviews for each seed; ICM on claims that it does not know."""
    found: dict[str, list[Accuracy]] = {}
    steps: list[Step] = []
    confidences: dict[str, list[dict[str, Any]]] = {}
    (other,) = set(VARIANTS) - {settings.variant}
    for seed in seeds:
        data = load("reviews").sample(size, seed)
        gold = Gold.read(BUNDLED / "reviews.gold.jsonl").of(data)
        for variant, kept in ((settings.variant, steps), (other, [])):
            chosen = SearchSettings(variant=variant, iterations=settings.iterations)
            judged, confidence = one_search(data, gold, score, chosen, seed, folder / f"{variant}-{seed}", kept)
            found.setdefault(ICM if variant == settings.variant else f"{ICM}, {variant}", []).append(judged)
            confidences.setdefault(variant, []).append(confidence)
        for name, one in compare(data, score, gold, shots=min(32, size - 1), seeds=[seed], skipped=tell).items():
            found.setdefault(name, []).append(one)
        console.print(f"seed {seed}: " + ", ".join(f"{name} {each[-1].mean:.3f}" for name, each in found.items()))
    data = load("claims").sample(size, 0)
    gold = Gold.read(BUNDLED / "claims.gold.jsonl").of(data)
    claims, unsure = one_search(data, gold, score, settings, 0, folder / "claims", [])
    table = {name: dataclasses.asdict(over_seeds(each)) for name, each in found.items()}
    scored = [step for step in steps if step.calls]
    return {
        "calls_per_iteration": round(sum(step.calls for step in scored) / len(scored), 4),
        "iterations_that_asked_nothing": round(1 - len(scored) / len(steps), 4),
        "cached_share_of_searches": round(
            sum(step.cached_tokens for step in scored) / max(1, sum(step.prompt_tokens for step in scored)), 4
        ),
        "accuracy": table,
        "accuracy_by_seed": {name: [one.mean for one in each] for name, each in found.items()},
        "icm_accuracy": round(table[ICM]["mean"], 4),
        "random_label_accuracy": round(table[RANDOM]["mean"], 4) if RANDOM in table else None,
        "icm_accuracy_other_variant": {other: round(table[f"{ICM}, {other}"]["mean"], 4)},
        "icm_confidence_by_seed": confidences,
        "claims_icm_accuracy": dataclasses.asdict(claims),
        "claims_icm_confidence": unsure,
    }


def one_search(
    data: Dataset, gold: bytes, score: Scorer, settings: SearchSettings, seed: int, folder: Path, steps: list[Step]
) -> tuple[Accuracy, dict[str, Any]]:
    """A search's accuracy and what it says of itself; its steps are added to `steps`."""
    started = time.perf_counter()
    search = Search(data, settings.model_copy(update={"seed": seed}), score)
    steps += Run(folder).follow(search, {})
    finding = conclude(search)
    judged = accuracy(bytes(label.label for label in finding.labels), gold)
    own = {
        "confidence": round(finding.confidence, 4),
        "shuffled_confidence": round(finding.shuffled_confidence, 4),
        "coherent": finding.coherent,
        "labelled_by_search": sum(label.searched for label in finding.labels),
        "accepted": search.state.accepted,
        "alpha": search.settings.alphas[search.state.alpha_level],
        "s": round(time.perf_counter() - started, 1),
    }
    return judged, own


def random_labels(count: int, seed: int) -> bytes:
    """Labels that no other seed has."""
    return bytes(stream(seed, "seeds").integers(2, size=count).tolist())


def in_tree_order(data: Dataset, labels: bytes) -> list[Prompt]:
    """A labelling's leave-one-out prompts as a search asks them."""
    prompts = Prompts(data, 0)
    return [prompts.render(question(labels, index)) for index in range(len(data))]


def in_example_order(data: Dataset, labels: bytes) -> list[Prompt]:
    """The same with demonstrations as they stand in the data."""
    shown = [f"{e.text}{data.words[label]}\n\n" for e, label in zip(data.examples, labels, strict=True)]
    return [
        Prompt(example.id, "".join(shown[:index] + shown[index + 1 :]) + example.text, data.words.in_text)
        for index, example in enumerate(data.examples)
    ]


def tell(name: str, error: Exception) -> None:
    """A baseline that cannot be run."""
    console.print(f"{name} is left out: {error}", markup=False)


def report(result: dict[str, Any], path: Path | None) -> None:
    """Print and save."""
    aims = {SPEEDUP: "4.7", "calls_per_iteration": "1", "icm_accuracy": "0.93"}
    keys = (
        *aims, "iteration_speedup_of_the_call_alone", "cached_share_cold", "cached_share_cold_bound",
        "cached_share_warm", "cached_share_warm_bound", "cached_share_of_searches", "resume_identical",
        "random_label_accuracy",
    )  # fmt: skip
    lines = [[key, str(result[key]), "", aims.get(key, "")] for key in keys]
    smaller, *_ = result["iteration_speedup_by_prompts"].items()
    lines.append([f"{SPEEDUP}, {smaller[0]} prompts", str(smaller[1]), "", ""])
    for name, found in result["accuracy"].items():
        interval = f"{found['low']:.3f} to {found['high']:.3f}, {found['seeds']} seed(s)"
        lines.append([f"accuracy, {name}", f"{found['mean']:.3f}", interval, ""])
    found = result["claims_icm_accuracy"]
    said = "coherent" if result["claims_icm_confidence"]["coherent"] else "not coherent"
    interval = f"{found['low']:.3f} to {found['high']:.3f}; says of itself: {said}"
    lines.append(["accuracy on claims that it does not know, ICM", f"{found['mean']:.3f}", interval, ""])
    title = f"ICM on real replicas ({result['examples']} examples, {result['gflops']} GFLOP/s {result['dtype']})"
    publish(title, ["", "measured", "95 % interval", "aim"], lines, result, path)


if __name__ == "__main__":
    main()
