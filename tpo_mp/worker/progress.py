"""Notes in the registry how far each open stream has come, for the letter of a call that is lost.

Done by the beat and never by a chunk: relaying costs nothing more.

Invariants: a beat looks at ``MOST`` calls at most, so that it stays short however many are open;
who was not looked at is first at the next one.  Among ``n`` open calls a count is therefore at most
``ceil(n / MOST)`` beats old.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from itertools import islice
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tpo_mp.pipeline.delivery import Delivery

MOST = 512


class Progress:
    """Goes round the open calls of one shard."""

    def __init__(self, open_calls: Collection[Delivery], note: Callable[[int, int], None]) -> None:
        """``note`` takes a call's slot in the registry and the bytes sent, -1 when not known."""
        self._open = open_calls
        self._note = note
        self._round: Iterator[Delivery] = iter(())

    def tick(self) -> None:
        """Note the next calls of the round; a round that is over begins again."""
        seen = 0
        for delivery in islice(self._round, MOST):
            seen += 1
            self._look(delivery)
        if seen < MOST:
            # A copy: calls come and go while a long round is under way.
            self._round = iter(list(self._open))
            for delivery in islice(self._round, MOST - seen):
                self._look(delivery)

    def _look(self, delivery: Delivery) -> None:
        if delivery.started and not delivery.settled and delivery.call.slot >= 0:
            self._note(delivery.call.slot, delivery.sent())
