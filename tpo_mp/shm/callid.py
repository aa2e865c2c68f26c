"""Names of calls: 128 bits, written as a UUID of version 8, that say where the call lives.

::

    ssssEEEE-EEEE-8ccc-vccc-rrrrrrrrrrrr
    ssss          seat, 16 bits
    EEEE-EEEE     the seat's epoch, 32 bits
    ccc           counter, upper 12 bits
    vccc          UUID variant (binary 10), counter, lower 14 bits
    r…            random, 48 bits

The last 32 bits of a call that belongs to a tenant are that tenant's mark instead (``marked``), so
that whoever is asked for a call, on whichever process, knows at once whose it is.

Unique while the host runs: seat and epoch name one occupation, the counter is unique within its
first 2²⁶ calls and the random part makes a repeat after that as unlikely as 2⁻⁴⁸ (2⁻¹⁶ with a
mark).
Nothing here is shared memory; the file stands here because slots and rings carry these ids.

Invariants: lower-case text is the only spelling; an id is a name and never a permission: a mark
only says which tenant's key it takes.
"""

from __future__ import annotations

import os
import re
from binascii import a2b_hex
from typing import NamedTuple

BATCH = 64
COUNTER_BITS = 26
MARK_HEX = 8

_LOW_BITS = 14
_VARIANT = 0x8000
_RANDOM_HEX = 12
_FORM = re.compile(
    r"([0-9a-f]{4})([0-9a-f]{4})-([0-9a-f]{4})"
    r"-8([0-9a-f]{3})-([89ab][0-9a-f]{3})-([0-9a-f]{12})"
)


class CallId(NamedTuple):
    """An id taken apart."""

    seat: int
    epoch: int
    counter: int
    random: int


class CallIds:
    """The source of one occupation's ids; made in batches, so ``new`` is a ``pop``."""

    __slots__ = ("_counter", "_head", "_ready")

    def __init__(self, seat: int, epoch: int) -> None:
        place = f"{seat:04x}{epoch:08x}"
        self._head = f"{place[:8]}-{place[8:]}-8"
        self._counter = 0
        self._ready: list[str] = []

    def new(self) -> str:
        """Answer an id that no other call has."""
        if not self._ready:
            self._refill()
        return self._ready.pop()

    def _refill(self) -> None:
        first = self._counter & (1 << COUNTER_BITS) - 1
        self._counter = first + BATCH
        head = f"{self._head}{first >> _LOW_BITS:03x}-"
        low = _VARIANT | first & (1 << _LOW_BITS) - 1
        noise = os.urandom(BATCH * _RANDOM_HEX // 2).hex()
        self._ready = [
            f"{head}{low + i:04x}-{noise[i * _RANDOM_HEX : (i + 1) * _RANDOM_HEX]}"
            for i in range(BATCH)
        ]

    @staticmethod
    def parse(text: str) -> CallId | None:
        """Take an id apart; ``None`` when ``text`` is not one of ours."""
        found = _FORM.fullmatch(text)
        if found is None:
            return None
        seat, epoch_high, epoch_low, high, low, random = found.groups()
        counter = int(high, 16) << _LOW_BITS | int(low, 16) & (1 << _LOW_BITS) - 1
        return CallId(int(seat, 16), int(epoch_high + epoch_low, 16), counter, int(random, 16))


def marked(call_id: str, mark: str) -> str:
    """The id as one of the tenant with this mark, 8 hex digits; an empty one changes nothing."""
    return call_id[:-MARK_HEX] + mark if mark else call_id


def mark_of(call_id: str, tenant: str) -> str:
    """The mark in a call's id; empty when no tenant owns it."""
    return call_id[-MARK_HEX:] if tenant else ""


def to_bytes(text: str) -> bytes:
    """The 16 bytes of an id (or of any UUID)."""
    return a2b_hex(text.replace("-", ""))


def to_text(raw: bytes) -> str:
    """The text of 16 bytes."""
    digits = raw.hex()
    return f"{digits[:8]}-{digits[8:12]}-{digits[12:16]}-{digits[16:20]}-{digits[20:]}"
