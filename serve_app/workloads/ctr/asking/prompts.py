"""The prompt: the shared part (task, ad, platform) first and the profile last, for the prefix cache."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from serve_app.errors import BadSettings
from serve_app.schema import Row
from serve_app.workloads.ctr.asking.explain import INSTRUCTION, MAX_TOKENS, schema
from serve_app.workloads.ctr.asking.frames import NO, SWAPS, YES, Frame, Swap, labels
from serve_app.workloads.ctr.people.documents import read_document
from serve_app.workloads.ctr.people.profiles import Profile

__all__ = ["NO", "PLATFORMS", "WORKLOAD", "YES", "Mode", "Question", "read_platforms", "render_rows"]

Mode = Literal["score", "explain"]
# Part of each row's identity: change a version with the wording of its prompts: frames and the default
# bank's descriptions are part of it.
WORKLOADS: dict[Mode, str] = {"score": "ctr/v2", "explain": "ctr-explain/v2"}
WORKLOAD = WORKLOADS["score"]
PLATFORMS = {
    "facebook": "Facebook: the ad appears in the news feed, between posts of friends and groups.",
    "tiktok": "TikTok: the ad appears as a short full-screen video between other short videos.",
    "amazon": "Amazon: the ad appears as a sponsored product among search results, to someone who is shopping.",
}


@dataclass(frozen=True)
class Question:
    """What is asked about each person: the ad, its place, and the form of answer.

    `context` describes a platform outside PLATFORMS. A person has one row per frame of `swap` in *score* mode, one row
    in *explain* mode. Raises BadSettings for an empty ad, an unknown platform, mode or swap, and frames in explain
    mode.
    """

    ad: str
    platform: str = "facebook"
    context: str = ""
    mode: Mode = "score"
    swap: Swap = "none"

    def __post_init__(self) -> None:
        if not self.ad.strip():
            raise BadSettings("--ad is empty: give the text of the ad")
        if not self.context.strip() and self.platform not in PLATFORMS:
            raise BadSettings(
                f"--ad-platform '{self.platform}' is unknown: use one of {', '.join(PLATFORMS)}, or say by "
                "--ad-platform-context where the ad appears"
            )
        for flag, value, known in (("mode", self.mode, WORKLOADS), ("swap", self.swap, SWAPS)):
            if value not in known:
                raise BadSettings(f"--{flag} '{value}' is unknown: use one of {', '.join(known)}")
        if self.mode == "explain" and self.swap != "none":
            raise BadSettings(f"--swap {self.swap}: labels are swapped in score mode; explain mode has none")

    @property
    def workload(self) -> str:
        return WORKLOADS[self.mode]

    @property
    def frames(self) -> tuple[Frame, ...]:
        """None in explain mode."""
        return SWAPS[self.swap] if self.mode == "score" else ()

    def job(self, *, external: bool = False) -> dict[str, Any]:
        """Fields of `driver.spec.JobSpec` for answers by our replicas or a provider. Raises BadSettings for labels that
        a provider would not show.
        """
        if self.mode == "explain":
            structured = {"json": schema(external=external)}
            return {"workload": self.workload, "structured": structured, "max_tokens": MAX_TOKENS}
        if external and len(labels(self.frames)) > 2:
            raise BadSettings(
                f"--swap {self.swap}: providers show the most likely tokens only, and labels of one wording "
                "are unlikely in the other's frame: use --swap order, or our own replicas"
            )
        return {"workload": self.workload, "labels": list(labels(self.frames))}

    def row_ids(self, profile_id: str) -> tuple[str, ...]:
        """Ids of a person's rows; the first is the person's."""
        return (profile_id, *(f"{profile_id}#{frame.name}" for frame in self.frames[1:]))

    def rows(self, profile: Profile) -> list[Row]:
        """A person's rows, or the profile's error."""
        ids = self.row_ids(profile.id)
        if profile.error is not None:
            return [Row(custom_id, error=profile.error) for custom_id in ids]
        person = {"role": "user", "content": profile.description}
        return [Row(custom_id, (shared, person)) for custom_id, shared in zip(ids, self._shared, strict=True)]

    @cached_property
    def _shared(self) -> list[dict[str, str]]:
        instructions = [frame.instruction for frame in self.frames] or [INSTRUCTION]
        return [{"role": "system", "content": self._task + instruction} for instruction in instructions]

    @property
    def _task(self) -> str:
        return (
            "You estimate whether a person clicks on an online ad. Most people ignore most ads; people click "
            "when an ad fits their age, work, income, debts, family and health.\n"
            f"Platform: {self.context.strip() or PLATFORMS[self.platform]}\n"
            f"Ad: {self.ad.strip()}\n"
            "You are given one person's profile. "
        )


def render_rows(profiles: Sequence[Profile], ad: str, platform: str) -> list[Row]:
    """One chat per profile, scored by the labels YES and NO. Raises BadSettings for an empty ad or population, or an
    unknown platform.
    """
    question = Question(ad, platform)
    if not profiles:
        raise BadSettings("--population-size must be at least 1")
    return [row for profile in profiles for row in question.rows(profile)]


def read_platforms(path: Path) -> Mapping[str, str]:
    """User platforms: a YAML or JSON mapping of names to descriptions. Raises BadSettings."""
    platforms = read_document(path)
    if not isinstance(platforms, dict) or not platforms:
        raise BadSettings(f"--platforms {path}: give a mapping of names to descriptions")
    for name, context in platforms.items():
        if not isinstance(context, str) or not context.strip():
            raise BadSettings(f"--platforms {path}: {name}: describe in words where the ad appears")
    return {str(name): context for name, context in platforms.items()}
