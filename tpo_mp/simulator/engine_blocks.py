"""The KV cache of a simulated engine: blocks of tokens, shared by prefix, the oldest reused first.

::

    taken (references > 0) ──give──► free, at the young end ──take──► taken, its old name forgotten
          ▲                            │
          └────────── share ───────────┘  a prompt that begins alike finds it by its name

A block's name is the chained hash of all tokens up to its end, so equal names are equal prefixes.
A block gets its name when all its tokens are computed, and keeps it while it lies free.

Invariants: a block is either free or has references, never both and never neither; a name belongs
to one block; of the free blocks the one that was given back longest ago is taken first.

Source: vLLM's documentation of automatic prefix caching.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Sequence


class KvBlocks:
    """All blocks of one engine; a block is its number."""

    __slots__ = ("_by_name", "_free", "_names", "_references", "caching", "total")

    def __init__(self, total: int, *, caching: bool = True) -> None:
        self.total = total
        self.caching = caching
        # Blocks that were never taken are not written down: an engine may have a million.
        self._free: OrderedDict[int, None] = OrderedDict()
        self._references: list[int] = []
        self._names: list[bytes | None] = []
        self._by_name: dict[bytes, int] = {}

    @property
    def free(self) -> int:
        """Blocks that nobody holds."""
        return self.total - len(self._references) + len(self._free)

    def holders(self, block: int) -> int:
        """How many hold a block."""
        return self._references[block]

    def find(self, names: Sequence[bytes]) -> list[int]:
        """The blocks of the longest known prefix."""
        found: list[int] = []
        for name in names:
            block = self._by_name.get(name)
            if block is None:
                break
            found.append(block)
        return found

    def idle(self, blocks: Iterable[int]) -> int:
        """How many of these blocks lie free: sharing them takes as many from ``free``."""
        return sum(not self._references[block] for block in blocks)

    def share(self, blocks: Iterable[int]) -> None:
        """Hold found blocks too."""
        for block in blocks:
            if not self._references[block]:
                del self._free[block]
            self._references[block] += 1

    def take(self, count: int) -> list[int]:
        """Take free blocks, those longest free first; the caller looked that there are enough."""
        first = len(self._references)
        fresh = min(count, self.total - first)
        self._references += [1] * fresh
        self._names += [None] * fresh
        taken = list(range(first, first + fresh))
        for _ in range(count - fresh):
            block, _ = self._free.popitem(last=False)
            self._forget(block)
            self._references[block] = 1
            taken.append(block)
        return taken

    def give(self, blocks: Sequence[int]) -> None:
        """Let go; the last block of a prefix is given up before those it needs."""
        for block in reversed(blocks):
            self._references[block] -= 1
            if not self._references[block]:
                self._free[block] = None

    def name(self, block: int, name: bytes) -> None:
        """Make a computed block known; of two with one name the first stays the known one."""
        if self.caching and self._names[block] is None and name not in self._by_name:
            self._names[block] = name
            self._by_name[name] = block

    def forget(self) -> None:
        """Let no block be found any more; who holds one keeps it."""
        self._names = [None] * len(self._names)
        self._by_name.clear()

    def _forget(self, block: int) -> None:
        name = self._names[block]
        if name is not None:
            self._names[block] = None
            del self._by_name[name]
