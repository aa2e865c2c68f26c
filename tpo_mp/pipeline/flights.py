"""The index of calls under way that others may join, and what is told of them.

Invariants: at most ``most`` of them; a call that finds no room is asked by itself.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Final

from tpo_mp.ports import Env
from tpo_mp.types import Call, Reply

from .flight import Flight, Rider

KEPT_BYTES: Final = 64 << 20


class Flights:
    """The flights of one process under one configuration."""

    def __init__(self, env: Env, most: int, linger_s: float = 0.0) -> None:
        """``linger_s`` is how long a flight waits for an SDK that gave up to ask again."""
        metrics = env.metrics
        self.clock = env.clock
        self.timers = env.timers
        self.linger_s = linger_s
        self._leave = env.peers.leave
        self.kept = 0
        """Bytes of streams that are kept for riders."""
        self._most = most
        self.under_way: dict[bytes, Flight] = {}
        """Those that can be joined, by their keys."""
        self._submitted = metrics.counter(
            "orchestrator_dedup_requests_total", "Calls that could share an answer."
        )
        self._joined = metrics.counter(
            "orchestrator_dedup_hits_total", "Calls that joined one under way."
        )
        self._unblocked = metrics.counter(
            "orchestrator_dedup_waiters_unblocked_total",
            "Calls that got the whole answer of one they had joined.",
        )
        self._active = metrics.gauge(
            "orchestrator_dedup_active_requests", "Upstream calls that can be joined now."
        )
        text = "Tokens that calls did not use because they shared an answer, as the backend counts."
        self._prompt = metrics.counter("tpo_dedup_saved_tokens_total", text, kind="prompt")
        self._completion = metrics.counter("tpo_dedup_saved_tokens_total", text, kind="completion")

    @property
    def crowded(self) -> bool:
        """Whether too much is kept."""
        return self.kept > KEPT_BYTES

    def __len__(self) -> int:
        return len(self.under_way)

    def join(
        self,
        key: bytes,
        call: Call,
        proceed: Callable[[Call], Awaitable[Reply]],
        afresh: bool = False,
    ) -> Awaitable[Reply]:
        """Answer a call with the flight of its key, or begin one.

        ``afresh``: it shall not join.  When two such are under way, nobody can tell which of them
        is meant by a third, so none is joined.
        """
        self._submitted.inc()
        under_way = self.under_way
        flight = under_way.get(key)
        if flight is None:
            if len(under_way) >= self._most:
                self._leave(key)
                return proceed(call)
            under_way[key] = flight = Flight(self, key, proceed)
            self._active.add(1)
            rider = Rider(flight, call, self.clock())
            flight.riders.append(rider)
            out = rider.out  # it is another's once it was kept
            flight.begin()
            return out
        if afresh:
            flight.close()
            return proceed(call)
        self._joined.inc()
        return flight.add(call)

    def close(self, flight: Flight) -> None:
        """A flight cannot be joined any more."""
        if self.under_way.get(flight.key) is flight:
            del self.under_way[flight.key]
            self._leave(flight.key)
            self._active.add(-1)

    def served(self, riders: Sequence[Rider], reply: Reply) -> None:
        """An answer is complete: count whom it saved a call of their own."""
        more = len(riders) - 1
        if more > 0:
            self._unblocked.inc(more)
            usage = reply.usage
            if usage is not None:
                self._prompt.inc(max(usage.prompt, 0) * more)
                self._completion.inc(max(usage.completion, 0) * more)
