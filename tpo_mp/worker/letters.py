"""Dead letters a shard writes itself: calls it accepted and could not finish.

A call that was shed, expired, or failed on the gateway's or an upstream's side leaves its payload;
one the client cancelled or got wrong does not.

Invariants: letters wait here while control's ring is full, at most ``MAX_WAITING`` of them and
``MAX_WAITING_BYTES``, then the oldest go, whole, and are counted; a letter's pieces stay in order
and nothing stands between them; one that is begun is never ended without all of its pieces.
A body over ``MAX_BODY_BYTES`` is cut there, and its letter says so.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from time import time
from typing import TYPE_CHECKING

from msgspec.structs import replace

from tpo_mp.ports import Metrics
from tpo_mp.shm.frames import DeadLetterFrame, Kind, frame
from tpo_mp.types import Terminal

if TYPE_CHECKING:
    from tpo_mp.pipeline.delivery import Delivery

MAX_WAITING = 1024
MAX_WAITING_BYTES = 64 << 20
MAX_BODY_BYTES = 32 << 20
"""Control joins no longer bodies."""
_FRAME_BYTES = 1536
_ALWAYS = (Terminal.SHED, Terminal.EXPIRED, Terminal.CRASHED)


def wants_letter(delivery: Delivery) -> bool:
    """Whether a call that ended so leaves a letter."""
    terminal = delivery.terminal
    if not delivery.lettered:
        return False
    return terminal in _ALWAYS or (terminal is Terminal.FAILED and delivery.status >= 500)


class Letters:
    """The outgoing letters of one shard."""

    def __init__(self, push: Callable[[bytes], bool], max_record: int, metrics: Metrics) -> None:
        self._push = push
        self._piece_bytes = max_record - _FRAME_BYTES
        self._waiting: deque[_Waiting] = deque()
        self._held = 0
        self._written = metrics.counter("tpo_dead_letters_sent_total", "Dead letters written.")
        self._dropped = metrics.counter(
            "tpo_dead_letters_dropped_total", "Dead letters lost to a full ring."
        )

    def add(self, delivery: Delivery) -> None:
        """Write a letter if this end calls for one."""
        if wants_letter(delivery):
            self._written.inc()
            self._hold(delivery)

    def flush(self) -> bool:
        """Push what waits; answers whether nothing is left."""
        while self._waiting:
            letter = self._waiting[0]
            while letter.at >= 0:
                if not self._push(letter.record(self._piece_bytes)):
                    return False
                letter.go_on(self._piece_bytes)
            self._drop_first()
        return True

    def _hold(self, delivery: Delivery) -> None:
        letter = _Waiting(delivery)
        self._waiting.append(letter)
        self._held += len(letter.body)
        while len(self._waiting) > MAX_WAITING or self._held > MAX_WAITING_BYTES:
            self._drop_first()
            self._dropped.inc()

    def _drop_first(self) -> None:
        self._held -= len(self._waiting.popleft().body)


class _Waiting:
    """A letter, and from where on its body is still to be sent; -1: nothing is."""

    __slots__ = ("at", "body", "letter")

    def __init__(self, delivery: Delivery) -> None:
        call, error = delivery.call, delivery.error
        self.at = 0
        self.body = call.body[:MAX_BODY_BYTES]
        self.letter = DeadLetterFrame(
            call.id,
            call.client_request_id,
            call.session or "",
            error.reason if error is not None else delivery.terminal.value,
            time(),
            call.model,
            call.tenant,
            delivery.template,
            b"",
            truncated=len(call.body) > MAX_BODY_BYTES,
            bytes_sent=delivery.sent(),
        )

    def record(self, step: int) -> bytes:
        """The next piece, of ``step`` bytes of the body."""
        end = self.at + step
        more = end < len(self.body)
        piece = replace(self.letter, body=self.body[self.at : end], more=more, at=self.at)
        return frame(Kind.DEAD_LETTER, 0, piece)

    def go_on(self, step: int) -> None:
        """The piece was sent."""
        self.at += step
        if self.at >= len(self.body):
            self.at = -1
