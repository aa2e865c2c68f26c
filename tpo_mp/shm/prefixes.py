"""Which backend has seen the beginnings of which prompts: one index for all processes of a host.

::

    0      magic u64 | layout u64 | pad to 64
    64     names   255 x 16 bytes   blake2b of a backend's name, in the order they came; line n is
                                    number n + 1
    then   pad to a multiple of 64
    then   sets x 8 entries of one u64
           bits 0-39   tag      five bytes of a block's digest
           bits 40-47  number   of the backend; 0: nothing is here
           bits 48-63  stamp    CLOCK_MONOTONIC / ``STAMP_S``, mod 65 536, when it was last recorded

A block is known by a digest of eight bytes that covers all of the prompt up to its end
(``pipeline.prompt_blocks``), so a block that is found says that everything before it was the same.
Bytes 0-4 are its tag, bytes 5 and 6 choose its set.  Several backends may have a block: one entry
each.

An entry is one aligned word and is stored at once, by anybody and without a lock: what others see
if a process dies between any two lines is an entry as it was or as it became.  Two that write one
entry at a time leave one of the two.  The oldest entry of a set gives way.  Names are given under
the ledger's lock of row 5, by writing 16 bytes where zeros were; half a name is nobody's, and takes
one number out of use.

Memory order: none is relied on: the index is a hint, and an entry seen late is one found later.

Invariants: fixed size; a lookup reads at most ``2 + log2(blocks)`` sets and writes nothing.
Known weakness: 40 bits and the set are all that is compared, so one lookup in about 10^11 finds
what nobody recorded, and a call goes to a backend that has not seen it.  Backends are not asked
what they dropped since.  Numbers are never given back: a host knows 255 names in its life.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from hashlib import blake2b
from struct import Struct
from time import monotonic
from typing import Final

from .rows import RowTable
from .structure import FixedStructure

MAGIC: Final = int.from_bytes(b"TPOPREFX", "little")
LAYOUT: Final = 1
LOCK_ROW: Final = 5
SETS: Final = 1 << 15
WAYS: Final = 8
NAMES: Final = 255
NAME_BYTES: Final = 16
TAG_BYTES: Final = 5
STAMP_S: Final = 16.0
REFRESHED: Final = 2
"""An entry this many stamps old is stamped again when it is recorded."""
_NAMES_AT: Final = 64
_SETS_AT: Final = -(-(_NAMES_AT + NAMES * NAME_BYTES) // 64) * 64
_SET_BYTES: Final = WAYS * 8
_SIZE: Final = _SETS_AT + SETS * _SET_BYTES
_NOBODY: Final = bytes(NAME_BYTES)
_SET: Final = SETS - 1
_split: Final = Struct(f"<{TAG_BYTES}sHx").unpack
"""The tag of a block, and a number whose lower bits choose its set."""
_ENTRY: Final = (1 << 48) - 1


class PrefixSegment(FixedStructure):
    """The memory; see ``SharedPrefixes`` for what a process does with it."""

    NAME = "prefixes"
    HEAD = (MAGIC, LAYOUT)
    SIZE = _SIZE


class SharedPrefixes:
    """The index as one process uses it; implements ``ports.Prefixes``."""

    def __init__(
        self, segment: PrefixSegment, table: RowTable, clock: Callable[[], float] = monotonic
    ) -> None:
        self._map, self._words = segment.map, segment.words
        self._search = segment.map.find
        self._table = table
        self._clock = clock
        self._numbers: dict[str, int] = {}

    def number(self, name: str) -> int:
        """The number of a backend, given when first asked for; 0: there is none for it now.

        Who cannot have the lock at once is told 0, and asks again with the next call.
        """
        number = self._numbers.get(name)
        if number is None:
            with self._table.lock(LOCK_ROW) as held:
                if held is None:
                    return 0
                number = self._numbers[name] = self._named(name)
        return number

    def find(self, blocks: Sequence[bytes]) -> tuple[int, tuple[int, ...]]:
        """How many blocks from the first on are known, and who has them all.

        By halves: the blocks before one that is known were recorded with it.  What nobody has is
        not known: a tag of zeros is found where nothing is.  Nor is one found that begins within an
        entry; who looks for another behind it finds a hint in 10^10 more.
        """
        if not blocks:
            return 0, ()
        search, split = self._search, _split
        tag, number = split(blocks[0])
        at = (number & _SET) * 64 + _SETS_AT
        found = search(tag, at, at + 64)
        if found & 7:
            return 0, ()  # not aligned, or -1
        last, known, unknown = tag, 0, len(blocks)
        middle = unknown - 1  # mostly all of it is known then
        while known < middle:
            tag, number = split(blocks[middle])
            at = (number & _SET) * 64 + _SETS_AT
            seen = search(tag, at, at + 64)
            if seen & 7:
                unknown = middle
            else:
                found, last, known = seen, tag, middle
            middle = (known + unknown) >> 1
        holders = self._holders(found, last)
        return (known + 1, holders) if holders else (0, ())

    def record(self, blocks: Sequence[bytes], number: int, known: int = 0) -> None:
        """A backend is sent these blocks; ``known`` of them were found with it just now."""
        if not number:
            return
        now = int(self._clock() / STAMP_S) & 0xFFFF
        if known and self._write(blocks[known - 1], number, now):
            known = 0  # those before it are as old
        for block in blocks[known:]:
            self._write(block, number, now)

    def _holders(self, found: int, tag: bytes) -> tuple[int, ...]:
        """The numbers beside a tag, from where it was found to the end of its set."""
        places, search = self._map, self._search
        end = (found | _SET_BYTES - 1) + 1
        number = places[found + TAG_BYTES]
        holders: tuple[int, ...] = (number,) if number else ()
        found = search(tag, found + 8, end)
        while found >= 0:
            if not found & 7 and (number := places[found + TAG_BYTES]):
                holders += (number,)
            found = search(tag, found + 8 - (found & 7), end)
        return holders

    def _write(self, block: bytes, number: int, now: int) -> bool:
        """Record one block; answers whether that changed anything."""
        tag, place = _split(block)
        first = ((place & _SET) * _SET_BYTES + _SETS_AT) // 8
        entry = int.from_bytes(tag, "little") | number << 40
        oldest, age = first, -1
        for n, word in enumerate(self._words[first : first + WAYS].tolist(), first):
            if word & _ENTRY == entry:
                if (now - (word >> 48)) & 0xFFFF < REFRESHED:
                    return False
                oldest = n
                break
            old = (now - (word >> 48)) & 0xFFFF if word else 0x10000
            if old > age:
                oldest, age = n, old
        self._words[oldest] = entry | now << 48
        return True

    def _named(self, name: str) -> int:
        """Find or give a number under the lock; 0 when all are given, which stays so."""
        digest = blake2b(name.encode(), digest_size=NAME_BYTES).digest()
        for number in range(1, NAMES + 1):
            at = _NAMES_AT + (number - 1) * NAME_BYTES
            found = self._map[at : at + NAME_BYTES]
            if found == digest:
                return number
            if found == _NOBODY:
                self._map[at : at + NAME_BYTES] = digest
                return number
        return 0
