"""Runs of pages for one owner: a buddy allocator in ordinary memory.

Nothing here is shared.  The registry's occupant keeps its arena's free list in one of these and,
after a restart, derives it anew from the slots that are still taken.

Invariants: a run has 2^order pages and starts at a multiple of that.  Up to eight runs per order
are kept as they came back, because the next call usually wants the same; all others are merged with
their free buddies at once, and those eight as soon as a ``take`` would fail.
"""

from __future__ import annotations

KEPT = 8


class Pages:
    """Free runs of ``total`` pages (a power of two)."""

    __slots__ = ("_free", "_kept", "_top")

    def __init__(self, total: int) -> None:
        self._top = total.bit_length() - 1
        # A dict per order: ``popitem`` reuses the run freed last, ``in`` finds a buddy.
        self._free: list[dict[int, None]] = [{} for _ in range(self._top + 1)]
        self._free[self._top][0] = None
        self._kept: list[list[int]] = [[] for _ in range(self._top + 1)]

    def take(self, order: int) -> int:
        """Answer the first page of a free run, ``-1`` when there is none that long."""
        if order > self._top:
            return -1
        kept = self._kept[order]
        if kept:
            return kept.pop()
        page = self._carve(order)
        return self._carve(order) if page < 0 and self._merge_kept() else page

    def _carve(self, order: int) -> int:
        free = self._free
        for found in range(order, self._top + 1):
            if free[found]:
                page, _ = free[found].popitem()
                while found > order:
                    found -= 1
                    free[found][page + (1 << found)] = None
                return page
        return -1

    def give(self, page: int, order: int) -> None:
        """Take a run back."""
        kept = self._kept[order]
        if len(kept) < KEPT:
            kept.append(page)
        else:
            self._merge(page, order)

    def _merge_kept(self) -> bool:
        any_kept = False
        for order, kept in enumerate(self._kept):
            while kept:
                self._merge(kept.pop(), order)
                any_kept = True
        return any_kept

    def _merge(self, page: int, order: int) -> None:
        free = self._free
        while order < self._top and (buddy := page ^ 1 << order) in free[order]:
            del free[order][buddy]
            page = min(page, buddy)
            order += 1
        free[order][page] = None

    def reserve(self, page: int, order: int) -> bool:
        """Take one particular run; ``False`` when it is not wholly free or not a run."""
        if order > self._top or page % (1 << order):
            return False
        self._merge_kept()
        for found in range(order, self._top + 1):
            start = page >> found << found
            if start in self._free[found]:
                del self._free[found][start]
                self._split(start, found, page, order)
                return True
        return False

    def _split(self, start: int, found: int, page: int, order: int) -> None:
        """Free everything of a run but the shorter run at ``page``."""
        while found > order:
            found -= 1
            half = start + (1 << found)
            self._free[found][start if page >= half else half] = None
            start = half if page >= half else start

    def free_pages(self) -> int:
        """Pages nobody has."""
        return sum(
            len(free) + len(kept) << order
            for order, (free, kept) in enumerate(zip(self._free, self._kept, strict=True))
        )
