"""Clients that check every word: sessions of both shards, unary and streamed, without a pause.

Each call's text is its own, so an answer that is complete but wrong cannot pass.
"""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from random import Random
from typing import Self

from .load import LoopThread
from .shards import CHAT
from .wait import wait_for
from .wire import Attempt, Wire


class Talk(LoopThread):
    """Closed-loop clients; a context manager that talks for as long as it is open."""

    def __init__(
        self,
        url: str,
        rng: Random,
        *,
        clients: int = 10,
        words: int = 40,
        model: str = "echo",
        patience_s: float = 10.0,
    ) -> None:
        super().__init__()
        self.attempts: list[Attempt] = []
        self.wrong: list[tuple[Attempt, str]] = []
        self._url = url
        self._rng = rng
        self._clients = clients
        self._words = words
        self._model = model
        self._patience_s = patience_s
        self._stopping = False
        self._running: list[asyncio.Task[None]] = []

    def __enter__(self) -> Self:
        super().__enter__()
        self.call(self._start())
        return self

    def __exit__(self, *exc: object) -> None:
        self._stopping = True
        super().__exit__(*exc)

    async def _start(self) -> None:
        self._running = [asyncio.create_task(self._client(n)) for n in range(self._clients)]

    def stop(self) -> None:
        """Let every client finish its call."""
        self._stopping = True
        self.call(self._join(), self._patience_s + 20)

    async def _join(self) -> None:
        await asyncio.gather(*self._running)

    async def _client(self, number: int) -> None:
        wire = Wire(self._url)
        while not self._stopping:
            attempt = Attempt(f"talk-{len(self.attempts)}", stream=bool(number % 2))
            attempt.session = f"talk-{self._rng.randrange(64)}"
            self.attempts.append(attempt)
            text = " ".join(f"{self._rng.getrandbits(48):012x}" for _ in range(self._words))
            host = f"{wire.host}:{wire.port}"
            request = attempt.request(host, text, self._model, CHAT)
            try:
                await wire.run(attempt, request, patience_s=self._patience_s)
                right = attempt.outcome != "ok" or _said(attempt) == f"{attempt.id} {text}"
            except Exception as error:  # bytes that are no reply at all
                attempt.outcome, attempt.why, right = "error", repr(error), False
                wire.close()
            if not right:
                self.wrong.append((attempt, text))
            if attempt.outcome == "refused":
                await asyncio.sleep(0.02)
        wire.close()

    def over(self) -> int:
        """How many attempts have ended."""
        return sum(attempt.outcome != "open" for attempt in list(self.attempts))

    def more(self, number: int, timeout_s: float = 20.0) -> None:
        """Wait for that many further ends."""
        target = self.over() + number
        wait_for(lambda: self.over() >= target, timeout_s, f"{number} further ends")

    def outcomes(self) -> Counter[str]:
        """All outcomes, for messages."""
        return Counter(attempt.outcome for attempt in list(self.attempts))

    def check(self) -> None:
        """Fail if an answer was wrong, or a client heard nothing."""
        print(f"{len(self.attempts)} calls: {dict(self.outcomes())}")
        assert not self.wrong, self.wrong[:3]
        hung = [attempt for attempt in self.attempts if attempt.outcome in ("hung", "open")]
        assert not hung, hung[:3]
        assert self.outcomes()["ok"] > 0


def _said(attempt: Attempt) -> str:
    if not attempt.stream:
        content: str = json.loads(attempt.body)["choices"][0]["message"]["content"]
        return content
    deltas = [json.loads(event)["choices"][0]["delta"] for event in attempt.events[:-1]]
    return "".join(delta.get("content", "") for delta in deltas)
