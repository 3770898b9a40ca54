"""Explain mode: the model reasons, decides and says how sure it is, as JSON of a schema that the engine enforces.

Its confidence is the model's own word, not a probability that was read from the model: compare it with score mode.
"""

from __future__ import annotations

import json
from typing import Annotated, Any

import msgspec

INSTRUCTION = (
    "Answer in JSON: reasoning, one short sentence; will_click, whether this person clicks on the ad; confidence, "
    "from 50 to 100, how many percent sure you are of will_click."
)
# Characters; and tokens, with room for one a character and for the rest: an answer that is cut off is no JSON.
LONGEST_REASONING, MAX_TOKENS = 200, 256


def schema(*, external: bool = False) -> dict[str, Any]:
    """The answer's JSON schema. Reasoning comes first, so that the decision can follow from it.

    For an `external` provider its length is not bounded: OpenAI's strict mode takes bounds of numbers, not of strings.
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
    """An answer. `confidence` is in percent."""

    reasoning: str
    will_click: bool
    confidence: Annotated[int, msgspec.Meta(ge=50, le=100)]

    @property
    def p_click(self) -> float:
        """The stated probability of a click."""
        return self.confidence / 100 if self.will_click else 1 - self.confidence / 100


def read_explanation(text: str) -> Explanation:
    """Raises ValueError for what is not JSON of the schema. A raw tab in a string is let through: grammars let it."""
    try:
        return msgspec.convert(json.loads(text, strict=False), Explanation)
    except ValueError as error:  # also msgspec's
        raise ValueError(f"the answer is not JSON of the schema: {error}") from error
