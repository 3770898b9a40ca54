"""Writes text that a grammar accepts, byte by byte. llguidance gives the allowed bytes.

Strings become words, and unbounded repetitions end. Knows JSON's punctuation, not JSON schemas.
"""

from __future__ import annotations

from functools import lru_cache
from random import Random
from typing import Any

MOST_BYTES = 65_536
# From here on, close what can be closed.
LONG = 2_000
WORDS = ("amber", "birch", "cedar", "delta", "ember", "fjord", "grove", "harbor", "iris", "jade", "lumen", "maple")
LETTERS, DIGITS = frozenset(b"abcdefghijklmnopqrstuvwxyz"), frozenset(b"0123456789")
PUNCTUATION = frozenset(range(0x21, 0x7F)) - LETTERS - DIGITS - frozenset(b'"\\{}[],:')


def walk(grammar: str, rng: Random) -> str:
    """A text that the grammar accepts; unfinished after MOST_BYTES."""
    matcher = _compiled(grammar).deep_copy()
    out, pen = bytearray(), _Pen(rng)
    while len(out) < MOST_BYTES and not matcher.is_stopped():
        if forced := matcher.compute_ff_bytes():
            written = bytes(forced)
        else:
            mask = matcher.compute_logit_bias()
            allowed = {byte for byte in range(256) if mask[byte]}
            if not allowed or (mask[_tokenizer().eos_token] and pen.may_end(len(out))):
                break
            written = bytes([pen.choose(allowed, len(out))])
        if not matcher.consume_tokens(list(written)):
            break
        out += written
        pen.wrote(written)
    return out.decode("utf-8", "replace")


def problem(grammar: str) -> str:
    """The grammar's error, or ""."""
    from llguidance import LLMatcher

    wrong, messages = LLMatcher.validate_grammar_with_warnings(grammar, _tokenizer())
    return str(messages[0]) if wrong else ""


@lru_cache(maxsize=1)
def _tokenizer() -> Any:
    from llguidance import LLTokenizer

    return LLTokenizer("byte")


@lru_cache(maxsize=256)
def _compiled(grammar: str) -> Any:
    from llguidance import LLMatcher

    return LLMatcher(_tokenizer(), grammar, log_level=0)


class _Pen:
    """Chooses the next allowed byte. A run is the current sequence of letters or digits."""

    def __init__(self, rng: Random) -> None:
        self._rng = rng
        self._run = b""
        self._word = b""
        self._digits = 0

    def may_end(self, length: int) -> bool:
        if not length or length > LONG:
            return bool(length)
        return 0 < len(self._word) <= len(self._run) or self._rng.random() < 0.3

    def wrote(self, data: bytes) -> None:
        for byte in data:
            inside = byte in LETTERS or byte in DIGITS
            self._run = self._run + bytes([byte]) if inside else b""

    def choose(self, allowed: set[int], length: int) -> int:
        if not self._run:
            self._word = self._rng.choice(WORDS).encode()
            self._digits = self._rng.choice((1, 2, 2, 3))
        classes = self._classes(allowed, length)
        kinds = [kind for kind in classes if kind[1]]
        members, _ = kinds[0] if len(kinds) == 1 else self._rng.choices(kinds, [weight for _, weight in kinds])[0]
        return self._rng.choice(sorted(members))

    def _classes(self, allowed: set[int], length: int) -> list[tuple[set[int], float]]:
        """Alternative byte classes with weights; only classes with an allowed byte."""
        letters, digits, quote = allowed & LETTERS, allowed & DIGITS, allowed & set(b'"')
        position, in_string = len(self._run), letters >= LETTERS
        at_word = self._word[position] if position < len(self._word) else None
        if in_string and at_word is not None and self._word.startswith(self._run):
            return [({at_word}, 1.0)]
        if in_string:
            classes = [(quote, 20.0), (allowed & set(b" "), 1.0), (letters | digits, 0.02), (allowed, 0.001)]
        elif length > LONG:
            classes = [(quote, 1.0), (allowed & set(b"}]"), 1000.0), (allowed, 0.001)]
        else:
            exponent = letters == {ord("e")}  # of a number
            inside = 0.02 if position >= (self._digits if exponent or not letters else len(self._word)) else 20.0
            rest = allowed & PUNCTUATION - (set(b"E") if exponent else set())
            classes = [
                (quote, 20.0),
                (allowed & set(b"{["), 1.0),
                (allowed & set(b"}"), 1.0),
                (allowed & set(b"]"), 1.5),
                (allowed & set(b","), 8.0 if ord("}") in allowed else 1.0),
                (letters, 0.0001 if exponent else inside),
                (digits, inside),
                (rest, 0.05),
            ]
        found = [(members, weight) for members, weight in classes if members]
        return found or [(allowed, 1.0)]
