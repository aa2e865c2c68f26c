"""One small text that any process of the host may replace and every process sees whole.

::

    0        magic u64 | layout u64 | half bytes u64 | pad to 64
    64       version u64 | pad to 64         0: nothing was written yet
    128      head of half 0: version u64 | length u64 | crc32 u64 | pad to 64
    192      head of half 1: the same
    256      half 0, 64 KiB
    …        half 1, 64 KiB

Version ``v`` lies in half ``v mod 2``.  Only the holder of the ledger's row 0 writes.  Steps of a
replacement of version ``v``, and what others see if the writer dies after each:

1. head of the other half: version = 0: ``v``, and the half of ``v - 1`` is gone;
2. text, length, crc, version = v + 1: still ``v``; the next writer writes over it;
3. version word = v + 1: the new text.

Memory order: publish and consume (see ``fence``): the half before the version word that names it.
A reader takes a half only if version and CRC agree with the word it read, so one that was
overwritten twice while it was read is read again.

Invariants: the version grows by one per replacement; what is compared and replaced is one step
under the lock; a reader never sees a mixture.
"""

from __future__ import annotations

from struct import Struct as Layout
from zlib import crc32

from tpo_mp.errors import TooLarge

from . import failpoints
from .fence import FENCED, fence
from .rows import RowTable
from .structure import FixedStructure

MAGIC = int.from_bytes(b"TPOLIVE1", "little")
LAYOUT = 1
VERSION_WORD = 8
DATA_AT = 256
HALF_BYTES = 64 << 10
LOCK_ROW = 0
READ_TRIES = 16

_VERSION, _LENGTH, _CRC = 0, 1, 2
_SIGNED = Layout("=QQ")


class LiveSegment(FixedStructure):
    """The memory of the text; see ``LiveText`` for what a process does with it."""

    NAME = "live-text"
    HEAD = (MAGIC, LAYOUT, HALF_BYTES)
    SIZE = DATA_AT + 2 * HALF_BYTES


class LiveText:
    """The ``Live`` of one process."""

    def __init__(self, segment: LiveSegment, table: RowTable) -> None:
        self._words = segment.words
        self._map = segment.map
        self._table = table
        self._last = (0, b"")

    @property
    def version(self) -> int:
        """What is in force: one word."""
        return self._words[VERSION_WORD]

    def read(self) -> tuple[int, bytes]:
        """Version and text; the last good copy while others write too fast to be read."""
        words = self._words
        for _ in range(READ_TRIES):
            version = words[VERSION_WORD]
            if version == self._last[0]:
                break
            if FENCED:
                fence()
            head, at = _places(version)
            length = min(words[head + _LENGTH], HALF_BYTES)
            text = self._map[at : at + length]
            if words[head + _VERSION] == version and words[head + _CRC] == _crc(version, text):
                self._last = (version, text)
                break
        return self._last

    def replace(self, seen: int, text: bytes) -> bool:
        """Put ``text`` in the place of version ``seen``; see ``ports.Live``."""
        if len(text) > HALF_BYTES:
            raise TooLarge(
                f"the live state would have {len(text)} bytes; at most {HALF_BYTES} fit",
                reason="live_state_too_large",
            )
        words = self._words
        with self._table.lock(LOCK_ROW) as held:
            if held is None or words[VERSION_WORD] != seen:
                return False
            version = seen + 1
            head, at = _places(version)
            words[head + _VERSION] = 0
            if failpoints.ACTIVE:
                self._map[at : at + len(text) // 2] = text[: len(text) // 2]
                failpoints.hit("live.half_written")
            self._map[at : at + len(text)] = text
            words[head + _LENGTH] = len(text)
            words[head + _CRC] = _crc(version, text)
            words[head + _VERSION] = version
            if failpoints.ACTIVE:
                failpoints.hit("live.before_version")
            if FENCED:
                fence()
            words[VERSION_WORD] = version
        return True


def _places(version: int) -> tuple[int, int]:
    """First word of the head, and first byte, of a version's half."""
    half = version & 1
    return 16 + 8 * half, DATA_AT + HALF_BYTES * half


def _crc(version: int, text: bytes) -> int:
    return crc32(text, crc32(_SIGNED.pack(version, len(text))))
