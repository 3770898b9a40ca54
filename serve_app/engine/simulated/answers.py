"""Generates one choice: its text with limits applied, and log-probabilities of its tokens.

Draws come from `random_of`, so equal requests have equal answers.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

from serve_app.engine.simulated import structured
from serve_app.engine.simulated.requests import ResponseFormat, StructuredOutputs, refused
from serve_app.engine.simulated.structured import Writer
from serve_app.engine.simulated.tokens import decode, encode
from serve_app.schema import pack_tokens

VOCABULARY = (  # noqa: SIM905  # easier to read
    "a again all also and answer any as at be before but by can city clear day each early end every few find "
    "first for from garden give good green hand have here high how in into it keep large last later light line "
    "little long look made many may more most near never new no now of old on one only open or other our out over "
    "part place plain point quiet read right river road same see short side small so some stone story such sun "
    "table take than that the them then there these time to tree turn under until upon very walk warm water way "
    "well where which white who wide will wind with word work year"
).split()
# Alternatives in log-probabilities.
ALTERNATIVES = tuple(dict.fromkeys(encode(f" {word}")[0] for word in VOCABULARY))
# Minimum and maximum without a limit.
WORDS = (12, 40)


@dataclass(frozen=True, slots=True)
class Limits:
    max_tokens: int
    min_tokens: int = 0
    ignore_eos: bool = False
    stop: tuple[str, ...] = ()
    keep_stop: bool = False


@dataclass(frozen=True, slots=True)
class Generation:
    """A finished choice. `finish_reason` is `stop` or `length`, `stop_reason` the stop string found."""

    text: str
    token_ids: tuple[int, ...]
    finish_reason: str
    stop_reason: str | None = None


def random_of(prompt: bytes, *, temperature: float | None, seed: int | None, index: int) -> Random:
    """The random generator for a prompt (packed token ids); one for all seeds at temperature 0."""
    digest = hashlib.sha256(prompt)
    if temperature != 0:
        digest.update(f"{seed}/{index}".encode())
    return Random(digest.digest())


def generate(write: Writer, rng: Random, limits: Limits) -> Generation:
    """A text of the writer's, within the limits."""
    text = write(rng).encode("utf-8", "replace").decode()  # schemas may contain lone surrogates
    least = limits.max_tokens if limits.ignore_eos else min(limits.min_tokens, limits.max_tokens)
    while len(ids := encode(text)) < least:
        text += f" {rng.choice(VOCABULARY)}"
    found = [(at, stop) for stop in limits.stop if (at := text.find(stop)) >= 0]
    at, stop = min(found, default=(len(text), None))
    if stop is not None:
        text = text[: at + len(stop) if limits.keep_stop else at]
        ids = encode(text)
    if len(ids) > limits.max_tokens or (limits.ignore_eos and stop is None):
        ids = ids[: limits.max_tokens]
        return Generation(decode(ids), tuple(ids), "length")
    return Generation(text, tuple(ids), "stop", stop)


def prose(rng: Random) -> str:
    length = rng.randint(*WORDS)
    words = " ".join(rng.choice(VOCABULARY) for _ in range(length))
    return f"This is a simulated answer ({rng.getrandbits(32):08x}): {words}."


def writer_of(response_format: ResponseFormat | None, outputs: StructuredOutputs | None, said: str = "") -> Writer:
    """The writer for a request's format; `said` is the prompt.

    Raises RequestRefused for an invalid schema or grammar.
    """
    if response_format is not None and response_format.type == "json_object":
        return structured.json_object(said)
    if response_format is not None and response_format.type == "json_schema":
        if response_format.json_schema is None or response_format.json_schema.schema_ is None:
            message = "When response_format type is 'json_schema', the 'json_schema' field must be provided."
            raise refused(message, "response_format")
        return structured.by_schema(response_format.json_schema.schema_, "response_format.json_schema.schema")
    return prose if outputs is None else _writer_of_outputs(outputs, said)


def _writer_of_outputs(outputs: StructuredOutputs, said: str) -> Writer:
    field = "structured_outputs"
    given = [name for name in StructuredOutputs.model_fields if getattr(outputs, name) not in (None, False)]
    if len(given) > 1:
        raise refused("You can only use one kind of constraints for structured outputs.", field)
    if outputs.json_ is not None:
        schema = structured.parsed(outputs.json_, f"{field}.json")
        return structured.by_schema(schema, f"{field}.json")
    if outputs.json_object:
        return structured.json_object(said)
    if outputs.choice is not None:
        return structured.choice(outputs.choice)
    if outputs.regex is not None:
        return structured.by_grammar("regex", outputs.regex, f"{field}.regex")
    if outputs.grammar is not None:
        return structured.by_grammar("grammar", outputs.grammar, f"{field}.grammar")
    if outputs.structural_tag is not None:
        raise refused("The simulated engine has no structural tags.", f"{field}.structural_tag")
    return prose


# --- log-probabilities ---


def label_logprobs(prompt: bytes, labels: int) -> tuple[float, ...]:
    """Log-probabilities of `labels` labels after a prompt (packed token ids); their mass is 0.9."""
    digest = hashlib.sha256(prompt).digest()
    weights = [1 + digest[i % len(digest)] for i in range(labels)]
    return tuple(math.log(0.9 * weight / sum(weights)) for weight in weights)


def token_logprobs(
    before: Sequence[int], token_ids: Sequence[int], top: int, labels: Sequence[int] | None = None
) -> list[dict[int, float]]:
    """For each token its own log-probability first, then those of the `top` tokens, itself included, in descending
    order.

    `labels` replace the top tokens.
    """
    found, seen = [], hashlib.sha256(pack_tokens(list(before)))
    for token in token_ids:
        rng = Random(seen.digest())
        if labels:
            found.append(_of_labels(seen.digest(), token, labels))
        else:
            found.append(_falling(rng, token, top))
        seen.update(pack_tokens([token]))
    return found


def _falling(rng: Random, token: int, top: int) -> dict[int, float]:
    share = rng.uniform(0.4, 0.95)
    logprobs, rest = {token: math.log(share)}, 1 - share
    others = rng.sample(ALTERNATIVES, min(top, len(ALTERNATIVES)))
    for other in [other for other in others if other != token][: max(0, top - 1)]:
        rest *= 0.5
        logprobs[other] = math.log(min(share, rest))
    return logprobs


def _of_labels(context: bytes, token: int, labels: Sequence[int]) -> dict[int, float]:
    logprobs = dict(zip(labels, label_logprobs(context, len(labels)), strict=True))
    return {token: logprobs.pop(token, math.log(0.05)), **logprobs}
