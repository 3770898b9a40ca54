"""Explain mode: the model reasons, decides and states its confidence, as JSON of an enforced schema. The confidence is
the model's word, not a probability from score mode.
"""

from __future__ import annotations

import json
from typing import Annotated, Any

import msgspec

INSTRUCTION = (
    "Answer in JSON: reasoning, one short sentence; will_click, whether this person clicks on the ad; confidence, "
    "from 50 to 100, how many percent sure you are of will_click."
)
# Characters; tokens allow one per character and the rest, since JSON must not be cut off.
LONGEST_REASONING, MAX_TOKENS = 200, 256


def schema(*, external: bool = False) -> dict[str, Any]:
    """The answer's JSON schema, with reasoning before the decision. An `external` provider gets no length bound:
    OpenAI's strict mode only bounds numbers.
    """
    bound = {} if external else {"maxLength": LONGEST_REASONING}
    return {
        "type": "object",
        "properties": {
            "reasoning": {"type": "string", **bound},
            "will_click": {"type": "boolean"},
            "confidence": {"type": "integer", "minimum": 50, "maximum": 100},
        },
        "required": ["reasoning", "will_click", "confidence"],
        "additionalProperties": False,
    }


class Explanation(msgspec.Struct, frozen=True):
    """An answer; `confidence` in percent."""

    reasoning: str
    will_click: bool
    confidence: Annotated[int, msgspec.Meta(ge=50, le=100)]

    @property
    def p_click(self) -> float:
        return self.confidence / 100 if self.will_click else 1 - self.confidence / 100


def read_explanation(text: str) -> Explanation:
    """Raises ValueError unless JSON of the schema. Raw tabs in strings pass, as in grammars."""
    try:
        return msgspec.convert(json.loads(text, strict=False), Explanation)
    except ValueError as error:
        raise ValueError(f"the answer is not JSON of the schema: {error}") from error
