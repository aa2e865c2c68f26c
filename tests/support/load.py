"""Load on a gateway from a thread of its own, and the ledger of what became of every request.

``Load`` runs clients in a closed loop, each in its own manner: kept connections, a connection per
request, streams, sessions.  ``Crowd`` holds many streams open at once.

The rule of the ledger: a request is *lost* when its client got neither a complete answer nor an
error, or when it was accepted, left unfinished, and is not in the dead-letter queue.
"""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from collections.abc import Callable, Coroutine, Iterable, Mapping
from contextlib import ExitStack
from random import Random
from typing import Any, Self, TypeVar

from .wait import wait_for
from .wire import Attempt, Wire

T = TypeVar("T")
CHAT = "/v1/chat/completions"


class LoopThread:
    """An event loop on a thread; a context manager."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="load", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.call(self._cancel_all())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(30)
        self._loop.close()

    def call(self, work: Coroutine[Any, Any, T], timeout_s: float = 30.0) -> T:
        """Run a coroutine there and wait for its value."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(timeout_s)

    async def _cancel_all(self) -> None:
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for _ in range(2):
            await asyncio.sleep(0)  # aborted transports close in the next turn


class Load(LoopThread):
    """Closed-loop clients; ``attempts`` is the ledger's client side."""

    def __init__(
        self,
        url: str,
        rng: Random,
        *,
        clients: int = 12,
        model: str = "echo",
        text: str = "one two three",
        pause_s: float = 0.005,
        streams: bool = True,
        sessions: bool = True,
        patience_s: float = 15.0,
    ) -> None:
        super().__init__()
        self.attempts: list[Attempt] = []
        self._url = url
        self._rng = rng
        self._clients = clients
        self._model = model
        self._text = text
        self._pause_s = pause_s
        self._streams = streams
        self._sessions = sessions
        self._patience_s = patience_s
        self._stopping = False
        self._prefix = f"{rng.getrandbits(32):08x}"
        self._running: list[asyncio.Task[None]] = []

    def __enter__(self) -> Self:
        super().__enter__()
        self.call(self._start())
        wait_for(lambda: self.count("ok") >= self._clients, 20, "the first answers")
        return self

    def __exit__(self, *exc: object) -> None:
        self.stop()
        super().__exit__(*exc)

    async def _start(self) -> None:
        self._running = [
            asyncio.create_task(self._client(number, Wire(self._url)), name=f"client-{number}")
            for number in range(self._clients)
        ]

    def stop(self) -> None:
        """Let every client finish what it has under way."""
        self._stopping = True
        self.call(self._join(), self._patience_s + 30)

    async def _join(self) -> None:
        await asyncio.gather(*self._running)

    async def _client(self, number: int, wire: Wire) -> None:
        try:
            await self._ask_on(number % 4, wire)
        finally:
            wire.close()

    async def _ask_on(self, manner: int, wire: Wire) -> None:
        """One of four manners: kept connection, one per request, streams, sessions."""
        while not self._stopping:
            attempt = Attempt(f"{self._prefix}-{len(self.attempts)}")
            attempt.stream = self._streams and manner == 2
            if self._sessions and manner == 3:
                attempt.session = f"s{self._rng.randrange(64)}"
            self.attempts.append(attempt)
            host = f"{wire.host}:{wire.port}"
            request = attempt.request(host, self._text, self._model, CHAT)
            await wire.run(attempt, request, patience_s=self._patience_s)
            if manner == 1:
                wire.close()
            if attempt.outcome == "refused":
                await asyncio.sleep(0.05)
            await asyncio.sleep(self._pause_s * self._rng.random() * 2)

    def count(self, *outcomes: str) -> int:
        """How many attempts ended so, up to now."""
        return sum(attempt.outcome in outcomes for attempt in list(self.attempts))

    def outcomes(self) -> Counter[str]:
        """All outcomes, for messages."""
        return Counter(attempt.outcome for attempt in list(self.attempts))

    def failed(self) -> list[Attempt]:
        """Attempts without a complete answer."""
        return [a for a in list(self.attempts) if a.outcome not in ("ok", "open")]

    def more(self, answers: int, timeout_s: float = 20.0) -> None:
        """Wait for that many further answers."""
        target = self.count("ok") + answers
        wait_for(lambda: self.count("ok") >= target, timeout_s, f"{answers} further answers")


class Crowd(LoopThread):
    """Many requests at once, each on its own connection, all started at entering."""

    def __init__(
        self,
        url: str,
        number: int,
        *,
        model: str = "echo",
        text: str = "one two three",
        prefix: str = "crowd",
        stream: bool = True,
        patience_s: float = 40.0,
        sessions: Iterable[str] = (),
        homes: Mapping[str, int] | None = None,
        apart: bool = False,
        **body: Any,
    ) -> None:
        """With ``homes``, the shard of each session, every call is made to another shard.

        ``apart`` gives each a session of its own: all shards serve some, also while only one of
        them takes connections.
        """
        super().__init__()
        self._homes = homes or {}
        named = list(sessions or self._homes)
        if apart:
            named = [f"{prefix}-{i}" for i in range(number)]
        self.attempts = [
            Attempt(f"{prefix}-{i}", stream=stream, session=named[i % len(named)] if named else "")
            for i in range(number)
        ]
        self._url = url
        self._model = model
        self._text = text
        self._body = body
        self._patience_s = patience_s
        self._running: list[asyncio.Task[None]] = []

    def __enter__(self) -> Self:
        super().__enter__()
        self.call(self._start())
        return self

    async def _start(self) -> None:
        for attempt in self.attempts:
            wire = Wire(self._url)
            request = attempt.request(
                f"{wire.host}:{wire.port}", self._text, self._model, CHAT, **self._body
            )
            self._running.append(asyncio.create_task(self._run(wire, attempt, request)))

    async def _run(self, wire: Wire, attempt: Attempt, request: bytes) -> None:
        try:
            await self._elsewhere(wire, attempt)
            await wire.run(attempt, request, patience_s=self._patience_s)
        finally:
            wire.close()

    async def _elsewhere(self, wire: Wire, attempt: Attempt) -> None:
        """Connect until a shard takes it that does not hold the session."""
        home = self._homes.get(attempt.session)
        while home is not None:
            probe = Attempt(f"{attempt.id}-where")
            request = probe.request(f"{wire.host}:{wire.port}", "", self._model, CHAT)
            await wire.run(probe, request, patience_s=self._patience_s)
            if probe.outcome == "ok" and probe.slot != home:
                return
            wire.close()

    def flowing(self, timeout_s: float = 20.0) -> Self:
        """Wait until every one has received something and none has ended."""
        self.begun(timeout_s)
        assert self.open(), self.outcomes()
        return self

    def begun(self, timeout_s: float = 20.0) -> Self:
        """Wait until every one has received something; some may be over."""
        wait_for(
            lambda: all(a.body for a in self.attempts), timeout_s, "every stream's first event"
        )
        return self

    def open(self) -> bool:
        """Whether none has ended."""
        return all(a.outcome == "open" for a in self.attempts)

    def ended(self, timeout_s: float = 40.0) -> list[Attempt]:
        """Wait until every one is over."""
        self.call(self._join(), timeout_s)
        return self.attempts

    async def _join(self) -> None:
        await asyncio.gather(*self._running)

    def outcomes(self) -> Counter[str]:
        """All outcomes, for messages."""
        return Counter(f"{a.outcome} {a.why}".strip() for a in self.attempts)


def flowing(running: ExitStack, make: Callable[[], Crowd], tries: int = 5) -> Crowd:
    """Enter crowds until all streams of one flow at once, and answer that one.

    On a machine that stands still the first of short streams may be over before the last begins.
    """
    for _ in range(tries):
        crowd = running.enter_context(make()).begun()
        if crowd.open():
            return crowd
        crowd.ended()
        assert all(a.outcome in ("open", "ok") for a in crowd.attempts), crowd.outcomes()
    raise AssertionError(f"{tries} times some streams were over before all had begun")
