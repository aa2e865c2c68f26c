"""The counts that outlive the host: which changed, and how they come back.

A count is the first four cells of a quota whose name begins with ``kept:``::

    cells    since | used, with what is held in advance | calls, likewise | when it last changed

What is written down is what was really used: without what anybody holds in advance, which is gone
with the host.  Sets whose word (see ``quotas``) is the one of the last look are not looked at.

Invariants: one process reads, and remembers what it read; a set that another process holds is read
next time; what comes back is joined with what is there already, once.
Known weakness: numbers that changed since the last look are forgotten with the host.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from struct import Struct as Layout
from typing import NamedTuple

from tpo_mp.errors import Shed
from tpo_mp.ports import Cells
from tpo_mp.types import Quota

from .quotas import KEPT_BYTES, SharedQuotas, kept_digest


class KeptRow(NamedTuple):
    """One name's numbers; ``crowd`` says in which part of the quotas it belongs."""

    digest: bytes
    crowd: bool
    cells: Cells


class KeptRows:
    """Looks for what changed among the counts that are kept."""

    def __init__(self, quotas: SharedQuotas) -> None:
        self._quotas = quotas
        self._sets = Layout(f"={len(quotas.changes()) // 8}Q").unpack
        self._seen: list[int] = []
        self.forget()

    def changed(self) -> list[KeptRow]:
        """Every kept count that is not as it was at the last look."""
        found: list[KeptRow] = []
        now = self._sets(self._quotas.changes())
        for place, word in enumerate(now):
            if word == self._seen[place]:
                continue
            rows = self._read(place)
            if rows is not None:
                self._seen[place] = word
                found += rows
        return found

    def forget(self) -> None:
        """Take every count for changed."""
        self._seen = [0] * len(self._sets(self._quotas.changes()))

    def _read(self, place: int) -> list[KeptRow] | None:
        try:
            self._quotas.lock(place)
        except Shed:
            return None
        try:
            kept = self._quotas.kept(place)
        finally:
            self._quotas.unlock(place)
        crowd = self._quotas.in_crowd(place)
        return [KeptRow(digest[:KEPT_BYTES], crowd, used.spent()) for digest, used in kept]


def restore(
    quotas: SharedQuotas, rows: Iterable[KeptRow], join: Callable[[Cells, Cells], Cells]
) -> int:
    """Put counts back, joined with what is there: ``join(there, kept)``; answers how many.

    Raises ``Shed`` when another process was stopped in the middle of the same set, or when calls
    hold something of all places there.
    """
    count = 0
    for digest, crowd, cells in rows:
        quotas.restore(kept_digest(digest), partial(_joined, join, cells), crowd=crowd)
        count += 1
    return count


def _joined(join: Callable[[Cells, Cells], Cells], kept: Cells, quota: Quota) -> None:
    begun, used, calls, at = quota.cells[:4]
    there = (begun, used - quota.lost_tokens, calls - quota.lost_requests, at)
    since, used, calls, at = join(there, kept)
    if since != begun:
        quota.void()
    quota.cells[:4] = since, used, calls, at
