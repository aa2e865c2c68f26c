"""Places, proofs and sizes of a ring; ``ring`` is their specification.

Invariants: changing anything here is a new ``plane.LAYOUT``.
"""

from __future__ import annotations

from struct import Struct

MAGIC = int.from_bytes(b"TPORING1", "little")
CAPACITY = 1
TAIL, EPOCH, PROOF = 8, 9, 10
HEAD = 16
DATA = 256
_HEADER = Struct("@iIII")
_LENGTH_AND_CRC = Struct("@i8xI")
PACK, UNPACK, GLANCE = _HEADER.pack_into, _HEADER.unpack_from, _LENGTH_AND_CRC.unpack_from
HEADER_BYTES = _HEADER.size
PADDING = 0x7FFFFFFF
PADDING_BYTES = b"padding"

MIN_CAPACITY = 32 * 1024
MAX_CAPACITY = 256 * 1024
MESH_BYTES = 64 * 1024 * 1024
RETRY_NS = 200_000

M32 = (1 << 32) - 1
_M64 = (1 << 64) - 1


def spread(epoch: int) -> int:
    """Spread an epoch over 32 bits, so that (sequence, epoch) pairs start different checksums."""
    return epoch * 0x9E3779B1 & M32


def epoch_word(epoch: int) -> int:
    """The epoch in the low half, its proof in the high half."""
    return epoch | (spread(epoch) ^ M32) << 32


def proof(tail: int) -> int:
    """What must stand beside a tail that is believed against all evidence."""
    return tail * 0x9E3779B97F4A7C15 + 0x7F4A7C15 & _M64


def ring_capacity(seats: int) -> int:
    """Data bytes of each ring: a power of two, 64 MiB over all pairs, 32 to 256 KiB."""
    wanted = MESH_BYTES // (seats * seats)
    return 1 << (max(MIN_CAPACITY, min(MAX_CAPACITY, wanted)).bit_length() - 1)
