"""Frames: ways to put the same question, which an unbiased reader would all answer alike.

Two frames of one wording differ in order only: which option is named first. Wordings differ in the label words.
Models prefer options by place and labels by word (Zhao et al. 2021, arXiv:2102.09690; Pezeshkpour and Hruschka 2023,
arXiv:2308.11483; Zheng et al. 2024, arXiv:2309.03882), so one frame's answer is the person's and the frame's.
`bias.py` tells them apart.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

YES, NO = "Yes", "No"


@dataclass(frozen=True)
class Frame:
    """`instruction` ends the shared part of the prompt; `click` and `ignore` are the labels that say so.

    The labels are one token in the vocabularies of common models, and differ in their first letters.
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
# In every set the frames of a wording stand together, and a wording has both orders or one.
SWAPS: dict[Swap, tuple[Frame, ...]] = {
    "none": (YES_NO,),
    "order": (YES_NO, NO_YES),
    "words": (YES_NO, NO_YES, A_CLICKS, B_CLICKS),
}


def labels(frames: tuple[Frame, ...]) -> tuple[str, ...]:
    """The label words of all frames, each once."""
    return tuple(dict.fromkeys(label for frame in frames for label in (frame.click, frame.ignore)))
