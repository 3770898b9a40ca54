"""The prompt: what all profiles share first (task, ad, platform), the profile last, so that the prefix cache works."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from serve_app.errors import BadSettings
from serve_app.schema import Row
from serve_app.workloads.ctr.profiles import Profile

# Part of each row's identity: change it with the wording.
WORKLOAD = "ctr/v1"
YES, NO = "Yes", "No"
PLATFORMS = {
    "facebook": "Facebook: the ad appears in the news feed, between posts of friends and groups.",
    "tiktok": "TikTok: the ad appears as a short full-screen video between other short videos.",
    "amazon": "Amazon: the ad appears as a sponsored product among search results, to someone who is shopping.",
}


def render_rows(profiles: Sequence[Profile], ad: str, platform: str) -> list[Row]:
    """One chat a profile.

    Raises BadSettings for an empty ad, an empty population or an unknown platform.
    """
    ask = asker(ad, platform)
    if not profiles:
        raise BadSettings("--population-size must be at least 1")
    return [ask(profile) for profile in profiles]


def asker(ad: str, platform: str) -> Callable[[Profile], Row]:
    """What makes a profile's chat. Raises BadSettings for an empty ad or an unknown platform."""
    if not ad.strip():
        raise BadSettings("--ad is empty: give the text of the ad")
    if platform not in PLATFORMS:
        raise BadSettings(f"--ad-platform '{platform}' is unknown: use one of {', '.join(PLATFORMS)}")
    shared = {
        "role": "system",
        "content": (
            "You estimate whether a person clicks on an online ad. Most people ignore most ads; people click "
            "when an ad fits their age, work, income, debts, family and health.\n"
            f"Platform: {PLATFORMS[platform]}\n"
            f"Ad: {ad.strip()}\n"
            "You are given one person's profile. "
            f"Answer with one word, {YES} or {NO}: does this person click on the ad?"
        ),
    }
    return lambda profile: Row(profile.id, (shared, {"role": "user", "content": _describe(profile)}))


def _describe(profile: Profile) -> str:
    # Short on purpose: these are the tokens that no cache saves.
    family = "married" if profile.is_married else "single"
    health = profile.illness if profile.health_status else "healthy"
    return (
        f"{profile.gender}, {profile.age}, {family}, {profile.region}, {profile.occupation}, "
        f"earns {profile.annual_salary}, owes {profile.liability_status}, {health}"
    )
