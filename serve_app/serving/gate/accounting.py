"""Counts an HTTP request's tokens where the engine produces them.

    gate: use(Account()) ─> vLLM's handler ─> engine.generate, wrapped by `install` ─> account.completion_tokens += …

A context variable, inherited by tasks, holds the request's account and is read when `generate` is called. vLLM 0.32
calls it in the handler's context for each prompt of a list, each beam, and once for all of `n`. Without an account (a
population's chunk, a health probe) the engine's own iterator is returned.

The answer's `usage` is missing for aborted requests and most streams. RequestOutput is read by field name, without
importing vllm.
"""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from contextlib import aclosing, contextmanager, suppress
from contextvars import ContextVar
from typing import Any
from weakref import WeakSet

from serve_app.errors import PromptTooLong
from serve_app.serving.gate.refusal import Refusal, prompt_too_long
from serve_app.serving.gate.room import Place
from serve_app.settings import PROBE_PRIORITY

# vLLM's request id suffix per beam and step (entrypoints/…/beam_search/online.py).
BEAM = re.compile(r"-[^-]+-beam-[0-9]+$")


class Account:
    """One HTTP request's tokens, and its place in the room. `refused`: a prompt exceeded `max_prompt_tokens`."""

    def __init__(self, max_prompt_tokens: int | None = None) -> None:
        self.prompt_tokens = 0
        self.completion_tokens = 0
        self.refused: Refusal | None = None
        self.place: Place | None = None
        self._max_prompt_tokens = max_prompt_tokens
        self._open: WeakSet[AsyncGenerator[Any, None]] = WeakSet()
        self._working = 0
        self._settle: Callable[[], None] | None = None
        self._beams: set[str] = set()

    @property
    def tokens(self) -> int:
        return self.prompt_tokens + self.completion_tokens

    def add(self, prompt_tokens: int, completion_tokens: int) -> None:
        self.prompt_tokens += prompt_tokens
        self.completion_tokens += completion_tokens

    def check_prompt(self, tokens: int) -> None:
        """Raises PromptTooLong, and records it because vLLM rewords it."""
        if self._max_prompt_tokens is not None and tokens > self._max_prompt_tokens:
            self.refused = prompt_too_long(tokens, self._max_prompt_tokens)
            raise PromptTooLong(self.refused.message)

    def is_later_beam(self, request_id: str) -> bool:
        """Whether this engine request continues a beam search."""
        found = BEAM.search(request_id)
        if found is None:
            return False
        search = request_id[: found.start()]
        later = search in self._beams
        self._beams.add(search)
        return later

    def when_idle(self, settle: Callable[[], None]) -> None:
        """Call `settle` once the engine is done, now or after a background response."""
        if self._working:
            self._settle = settle
        else:
            settle()

    async def abort(self) -> None:
        """End engine requests that nobody reads. A response cancelled while sending leaves its iterator suspended until
        garbage collection; one being read ends by its reader.
        """
        for outputs in list(self._open):
            with suppress(RuntimeError):  # being read
                await outputs.aclose()

    def open(self, outputs: AsyncGenerator[Any, None]) -> AsyncGenerator[Any, None]:
        self._open.add(outputs)
        return outputs

    @contextmanager
    def engine_request(self) -> Iterator[None]:
        self._working += 1
        try:
            yield
        finally:
            self._working -= 1
            if self._settle is not None and not self._working:
                settle, self._settle = self._settle, None
                settle()


_account: ContextVar[Account | None] = ContextVar("serve_app_account", default=None)


def current() -> Account | None:
    return _account.get()


@contextmanager
def use(account: Account) -> Iterator[Account]:
    """Set the account of all tasks started inside."""
    token = _account.set(account)
    try:
        yield account
    finally:
        _account.reset(token)


def count(prompts: Sequence[int], completion_tokens: int) -> None:
    """For an engine that counts once per request: each prompt's tokens, and all answers'. Raises PromptTooLong before
    counting.
    """
    if (account := _account.get()) is not None:
        for tokens in prompts:
            account.check_prompt(tokens)
        account.add(sum(prompts), completion_tokens)
        if account.place is not None:
            account.place.asked(len(prompts))


def started(prompts: int) -> None:
    """For the same engine: so many prompts have their first token."""
    if (account := _account.get()) is not None and account.place is not None:
        account.place.started(prompts)


class _Tally:
    def __init__(self, account: Account, deltas: bool, *, prompt_counted: bool = False) -> None:
        self.collector: Any = None
        self._account = account
        self._deltas = deltas
        self._begun = prompt_counted
        self._among: dict[str, _Tally] = {}
        self._request_id = ""
        self._counts: dict[int, int] = {}

    def wait_among(self, waiting: dict[str, _Tally], request_id: str) -> None:
        if self._account.place is not None:
            self._account.place.asked()
            waiting[request_id] = self
            self._among, self._request_id = waiting, request_id

    def started(self) -> None:
        if self._stop_waiting() and self._account.place is not None:
            self._account.place.started()

    def _stop_waiting(self) -> bool:
        return self._among.pop(self._request_id, None) is not None

    def end(self) -> None:
        self._stop_waiting()
        self._add_rest()

    def add(self, output: Any) -> None:
        self.started()
        if not self._begun:
            self._begun = True
            self._account.prompt_tokens += len(output.prompt_token_ids or ())
        if not isinstance(output.outputs, list):  # pooling has no tokens
            return
        for part in output.outputs:
            count, before = len(part.token_ids), self._counts.get(part.index, 0)
            self._counts[part.index] = before + count if self._deltas else count
            self._account.completion_tokens += self._counts[part.index] - before

    def _add_rest(self) -> None:
        """Count unread tokens, which an aborted request leaves in its collector."""
        with suppress(Exception):  # or the engine's error
            if self.collector is not None and (output := self.collector.get_nowait()) is not None:
                self.add(output)


_tally: ContextVar[_Tally | None] = ContextVar("serve_app_tally", default=None)


def install(engine: Any) -> None:
    """Make an engine (vLLM's AsyncLLM) count for its callers' accounts."""
    add_request = engine.add_request
    waiting = watch_starts(engine.output_processor)

    async def noting_collector(*args: Any, **options: Any) -> Any:
        collector = await add_request(*args, **options)
        tally = _tally.get()
        if tally is not None and tally.collector is None:
            tally.collector = collector
            tally.wait_among(waiting, collector.request_id)
        return collector

    engine.add_request = noting_collector
    engine.generate = counting(engine.generate)
    engine.encode = counting(engine.encode)


def watch_starts(processor: Any) -> dict[str, _Tally]:
    """Waiting tallies by request id, to be told of their first token: whole answers have an output only at the end."""
    waiting: dict[str, _Tally] = {}
    process = processor.process_outputs

    def noting_starts(outputs: Any, *args: Any, **options: Any) -> Any:
        for output in outputs if waiting else ():
            # vLLM calls the first of several choices 0_<id>.
            if (tally := waiting.get(output.request_id.removeprefix("0_"))) is not None:
                tally.started()
        return process(outputs, *args, **options)

    processor.process_outputs = noting_starts
    return waiting


def counting(method: Any) -> Any:
    """`generate` or `encode`, counting. Raises PromptTooLong on the call itself."""

    def counted(*args: Any, **options: Any) -> Any:
        account = _account.get()
        if account is not None and "priority" in options:  # never more urgent than a probe
            options["priority"] = max(PROBE_PRIORITY + 1, options["priority"])
        outputs = method(*args, **options)
        if account is None:
            return outputs
        later = account.is_later_beam(str(args[2] if len(args) > 2 else options.get("request_id", "")))
        if not later:
            account.check_prompt(prompt_length(args[0] if args else options["prompt"]))
        params = args[1] if len(args) > 1 else options.get("sampling_params")
        deltas = getattr(getattr(params, "output_kind", None), "name", "") == "DELTA"
        return account.open(_count(outputs, _Tally(account, deltas, prompt_counted=later), account))

    return counted


async def _count(outputs: AsyncGenerator[Any, None], tally: _Tally, account: Account) -> AsyncGenerator[Any, None]:
    _tally.set(tally)  # for `add_request`, called by the first step
    with account.engine_request():
        try:
            async with aclosing(outputs):  # only closing aborts
                async for output in outputs:
                    tally.add(output)
                    yield output
        finally:
            tally.end()


def prompt_length(prompt: Any) -> int:
    """Tokens of a rendered prompt; 0 if unknown, as for audio streams."""
    if not isinstance(prompt, dict):
        return 0
    decoder = prompt.get("decoder_prompt") or prompt
    for name in ("prompt_token_ids", "prompt_embeds"):
        if decoder.get(name) is not None:
            return len(decoder[name])
    return 0
