"""Brings made-up requests past a route's first refusal, to where an engine could fail.

A body whose sixty fields are all made up is refused for one of them: of 600 chats none was answered. So most bodies
become one that the route would answer, with a few of the made-up fields on top. Does not bound what that costs; see
`clamp.py`.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

HELLO = [{"role": "user", "content": "Hello"}]
CHAT_VARIANTS: tuple[dict[str, Any], ...] = ({}, {"stream": True}, {"logprobs": True, "top_logprobs": 2}, {"n": 2})
TEXT_VARIANTS: tuple[dict[str, Any], ...] = ({}, {"stream": True}, {"logprobs": 2, "echo": True}, {"n": 2})
# For each route: a body that it answers, and what may be added to it so that made-up fields come to matter.
ANSWERED: dict[str, tuple[dict[str, Any], tuple[dict[str, Any], ...]]] = {
    "/v1/chat/completions": ({"messages": HELLO}, CHAT_VARIANTS),
    "/v1/chat/completions/batch": ({"messages": [HELLO, HELLO]}, ({}, {"logprobs": True, "top_logprobs": 2})),
    "/v1/completions": ({"prompt": "Hello"}, TEXT_VARIANTS),
    "/v1/responses": ({"input": "Hello"}, ({}, {"stream": True})),
    "/v1/messages": ({"messages": HELLO, "max_tokens": 4}, ({}, {"stream": True})),
    "/v1/messages/count_tokens": ({"messages": HELLO}, ({},)),
    "/tokenize": ({"prompt": "Hello"}, ({}, {"return_token_strs": True})),
    "/detokenize": ({"tokens": [1, 2]}, ({},)),
    "/generative_scoring": ({"query": "Hello", "items": ["you"], "label_token_ids": [1, 2]}, ({},)),
    "/v1/batches/": (
        {"input_file_id": f"file-{0:024x}", "endpoint": "/v1/chat/completions", "completion_window": "24h"},
        ({},),
    ),
    "/v1/populations/": ({"rows": [{"custom_id": "a", "prompt": "Hello"}]}, ({}, {"labels": ["Yes", "No"]})),
}
# Of the bodies, this share is sent as it was made up.
UNTOUCHED = 0.3
KEPT_FIELDS = 3


def steer(path: str, body: Any, model: str, seed: int) -> Any:
    """The body as it is, or an answerable one with up to KEPT_FIELDS of its fields. The same body and seed, the same
    result, whichever thread asks and when."""
    if path not in ANSWERED or not isinstance(body, Mapping):
        return body
    draw = random.Random(f"{seed} {path} {body!r}")
    if draw.random() < UNTOUCHED:
        return body
    answered, variants = ANSWERED[path]
    named = {} if path.startswith(("/v1/populations", "/v1/batches")) else {"model": model}
    fields = sorted(set(map(str, body)) - {"model"})
    kept = draw.sample(fields, min(len(fields), draw.randint(0, KEPT_FIELDS)))
    return {**answered, **draw.choice(variants), **named, **{name: body[name] for name in kept}}
