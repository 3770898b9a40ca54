"""`python -m benchmarks.front.null_server PORT`: answers chats at once, one chunk a token, without a model.

What a load generator reaches here is the most that it can measure anywhere.
"""

from __future__ import annotations

import json
import sys
from typing import Any

from aiohttp import web


async def chat(request: web.Request) -> web.StreamResponse:
    """A stream of as many chunks as tokens are asked for, each written by itself."""
    asked = await request.json()
    tokens = int(asked.get("max_completion_tokens") or asked["max_tokens"])
    response = web.StreamResponse(headers={"content-type": "text/event-stream"})
    await response.prepare(request)
    for _ in range(tokens):
        await response.write(event({"choices": [{"index": 0, "delta": {"content": "a"}}]}))
    usage = {"prompt_tokens": 1, "completion_tokens": tokens, "total_tokens": 1 + tokens}
    await response.write(event({"choices": [], "usage": usage}) + b"data: [DONE]\n\n")
    return response


def event(data: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps({"id": "null", "object": "chat.completion.chunk", **data}).encode() + b"\n\n"


def main() -> None:
    import uvloop

    app = web.Application()
    app.router.add_post("/v1/chat/completions", chat)
    web.run_app(app, host="127.0.0.1", port=int(sys.argv[1]), loop=uvloop.new_event_loop(), print=None)


if __name__ == "__main__":
    main()
