"""Ordinary OpenAI requests beside the population, one after the other, and how many were not answered."""

from __future__ import annotations

import threading
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field

import httpx

TIMEOUT_S = 60.0
PAUSE_S = 0.5
CLIENTS = 2


@dataclass
class Answers:
    """`errors` by kind; `longest_gap_s` is the longest time in which no request was answered."""

    requests: int = 0
    errors: Counter[str] = field(default_factory=Counter)
    longest_gap_s: float = 0.0


class Online:
    """Context manager: clients ask while it is entered."""

    def __init__(self, base_url: str, model: str) -> None:
        self._url = f"{base_url}/v1/chat/completions"
        self._body = {"model": model, "messages": [{"role": "user", "content": "Say hello."}], "max_tokens": 4}
        self._end = threading.Event()
        self._lock = threading.Lock()
        self._threads = [threading.Thread(target=self._ask, daemon=True) for _ in range(CLIENTS)]
        self._answers = Answers()
        self._answered = time.monotonic()

    def __enter__(self) -> Online:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        for thread in self._threads:
            thread.join()

    def take(self) -> Answers:
        """What was counted since the last time."""
        with self._lock:
            taken, self._answers = self._answers, Answers()
            taken.longest_gap_s = max(taken.longest_gap_s, time.monotonic() - self._answered)
            return taken

    def _ask(self) -> None:
        with httpx.Client(timeout=TIMEOUT_S) as client:
            while not self._end.is_set():
                problem = self._one(client)
                with self._lock:
                    now = time.monotonic()
                    self._answers.requests += 1
                    if problem:
                        self._answers.errors[problem] += 1
                    else:
                        self._answers.longest_gap_s = max(self._answers.longest_gap_s, now - self._answered)
                        self._answered = now
                self._end.wait(PAUSE_S)

    def _one(self, client: httpx.Client) -> str:
        """Why there was no answer, else empty."""
        try:
            response = client.post(self._url, json=self._body)
        except httpx.HTTPError as error:
            return type(error).__name__
        if not response.is_success:
            return f"{response.status_code} {_message(response)}".strip()
        with suppress(ValueError, LookupError):
            if response.json()["choices"][0]["finish_reason"]:
                return ""
        return "no answer in a 200"


def _message(response: httpx.Response) -> str:
    with suppress(ValueError, LookupError, TypeError):
        return str(response.json()["error"]["message"])[:60]
    return ""
