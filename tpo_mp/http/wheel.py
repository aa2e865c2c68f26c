"""Deadlines for thousands of connections from one timer.

An entry is any object with a ``deadline`` (monotonic seconds, ``inf`` for none) and ``expire()``.
Moving a deadline *later* is just an assignment: the entry is looked at when its old bucket comes
up and filed again.  Moving it earlier needs ``add`` again.

Invariants: an entry expires at most one bucket (50 ms) late and never early; entries whose
deadline is ``inf`` when looked at are dropped, and must be added again.  An entry that was filed
twice, because its deadline moved earlier, is looked at twice and filed once.
"""

from __future__ import annotations

from time import monotonic

from tpo_mp.ports import Timed

GRAIN_S = 0.05
_FAR_S = 3.0


class Wheel:
    """Buckets of entries, turned by ``tick`` from the shard's beat."""

    __slots__ = ("__weakref__", "_buckets", "_turned")

    def __init__(self) -> None:
        self._buckets: dict[int, list[Timed]] = {}
        self._turned = int(monotonic() / GRAIN_S)

    def add(self, entry: Timed, now: float) -> None:
        """File ``entry``; harmless when it is filed already."""
        # Far deadlines are looked at every few seconds, so a later, nearer one is met in time
        # only through a fresh add; the bucket never lies past the deadline.
        at = min(entry.deadline, now + _FAR_S)
        if entry.filed_at <= at and entry.filed_at > now:
            return
        entry.filed_at = at
        bucket = max(int(at / GRAIN_S) + 1, self._turned + 1)
        self._buckets.setdefault(bucket, []).append(entry)

    def tick(self, now: float) -> None:
        """Expire what is due."""
        current = int(now / GRAIN_S)
        if current - self._turned > 4096:
            due = sorted(b for b in self._buckets if b <= current)
        else:
            due = [b for b in range(self._turned + 1, current + 1) if b in self._buckets]
        self._turned = current
        for bucket in due:
            for entry in self._buckets.pop(bucket):
                deadline = entry.deadline
                if entry.filed_at > now and deadline > now:
                    continue  # an older filing: the newer one will meet the deadline
                if deadline <= now:
                    entry.filed_at = 0.0
                    entry.deadline = float("inf")
                    entry.expire()
                elif deadline != float("inf"):
                    entry.filed_at = 0.0
                    self.add(entry, now)
                else:
                    entry.filed_at = 0.0
