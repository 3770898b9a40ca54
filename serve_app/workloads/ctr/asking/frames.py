"""Frames: equivalent ways to ask the same question.

Frames of a wording differ in which option comes first; wordings differ in the label words. Models prefer options by
place and labels by word (Zhao et al. 2021, arXiv:2102.09690; Pezeshkpour and Hruschka 2023, arXiv:2308.11483; Zheng et
al. 2024, arXiv:2309.03882), so an answer mixes person and frame. `bias.py` separates them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

YES, NO = "Yes", "No"


@dataclass(frozen=True)
class Frame:
    """`instruction` ends the prompt's shared part; `click` and `ignore` are the labels. Each is one token in common
    vocabularies, and first letters differ.
    """

    name: str
    wording: str
    instruction: str
    click: str
    ignore: str


YES_NO = Frame("yes-no", "yes/no", "Answer with one word, Yes or No: does this person click on the ad?", YES, NO)
NO_YES = Frame("no-yes", "yes/no", "Answer with one word, No or Yes: does this person click on the ad?", YES, NO)
A_CLICKS = Frame(
    "a-clicks", "A/B", "Answer with one letter, A or B. A: this person clicks on the ad. B: this person ignores it.",
    "A", "B",
)  # fmt: skip
B_CLICKS = Frame(
    "b-clicks", "A/B", "Answer with one letter, A or B. A: this person ignores the ad. B: this person clicks on it.",
    "B", "A",
)  # fmt: skip

Swap = Literal["none", "order", "words"]
# Sets keep a wording's frames together, with both orders or one.
SWAPS: dict[Swap, tuple[Frame, ...]] = {
    "none": (YES_NO,),
    "order": (YES_NO, NO_YES),
    "words": (YES_NO, NO_YES, A_CLICKS, B_CLICKS),
}


def labels(frames: tuple[Frame, ...]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(label for frame in frames for label in (frame.click, frame.ignore)))
