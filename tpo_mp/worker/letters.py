"""Dead letters a shard writes itself: calls it accepted and could not finish.

A call that was shed, expired, or failed on the gateway's or an upstream's side leaves its payload;
one the client cancelled or got wrong does not.

Invariants: letters wait here while control's ring is full, at most 1 024 records, then the oldest
go and are counted; a record's pieces stay in order.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from time import time
from typing import TYPE_CHECKING

from tpo_mp.ports import Metrics
from tpo_mp.shm.frames import DeadLetterFrame, Kind, frame
from tpo_mp.types import Terminal

if TYPE_CHECKING:
    from tpo_mp.pipeline.delivery import Delivery

MAX_WAITING = 1024
_FRAME_BYTES = 1536
_ALWAYS = (Terminal.SHED, Terminal.EXPIRED, Terminal.CRASHED)


class Letters:
    """The outgoing letters of one shard."""

    def __init__(self, push: Callable[[bytes], bool], max_record: int, metrics: Metrics) -> None:
        self._push = push
        self._piece_bytes = max_record - _FRAME_BYTES
        self._waiting: deque[bytes] = deque()
        self._written = metrics.counter("tpo_dead_letters_sent_total", "Dead letters written.")
        self._dropped = metrics.counter(
            "tpo_dead_letters_dropped_total", "Dead letter records lost to a full ring."
        )

    def add(self, delivery: Delivery) -> None:
        """Write a letter if this end calls for one."""
        terminal = delivery.terminal
        if not delivery.lettered:
            return
        if terminal in _ALWAYS or (terminal is Terminal.FAILED and delivery.status >= 500):
            self._written.inc()
            self._waiting.extend(self._records(delivery))
            while len(self._waiting) > MAX_WAITING:
                self._waiting.popleft()
                self._dropped.inc()

    def flush(self) -> bool:
        """Push what waits; answers whether nothing is left."""
        while self._waiting:
            if not self._push(self._waiting[0]):
                return False
            self._waiting.popleft()
        return True

    def _records(self, delivery: Delivery) -> Iterator[bytes]:
        call, error = delivery.call, delivery.error
        body, step = call.body, self._piece_bytes
        for at in range(0, max(1, len(body)), step):
            yield frame(
                Kind.DEAD_LETTER,
                0,
                DeadLetterFrame(
                    call.id,
                    call.client_request_id,
                    call.session or "",
                    error.reason if error is not None else delivery.terminal.value,
                    time(),
                    call.model,
                    call.tenant,
                    delivery.template,
                    body[at : at + step],
                    at + step < len(body),
                    bytes_sent=delivery.sent(),
                ),
            )
