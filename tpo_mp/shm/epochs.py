"""The configuration, published whole: two halves, written in turn by the supervisor.

::

    0        magic u64 | layout u64 | half bytes u64 | pad to 64
    64       head of half 0: epoch u64 | length u64 | crc32 u64 | pad to 64
    128      head of half 1: the same
    4 096    half 0, 4 MiB
    …        half 1, 4 MiB

``epoch`` 0 means empty.  Only the supervisor writes.  Steps of a publication into the half that
does not hold the newest epoch, and what a reader sees if the writer dies after each:

1. head.epoch = 0: the second newest epoch is gone, the newest stands;
2. blob, length, crc: the same;
3. head.epoch = epoch: the new blob can be read; it counts only when the control plane says so.

Memory order: none is relied on.  The CRC covers epoch, length and blob, so a half that is seen
half-changed is "gone", and the reader asks again or keeps the configuration it has.

Invariants: epochs grow; the newest two can be read; the blob is never looked into here.
"""

from __future__ import annotations

from struct import Struct as Layout
from zlib import crc32

from tpo_mp.errors import ConfigError

from .structure import FixedStructure

MAGIC = int.from_bytes(b"TPOCNFG1", "little")
LAYOUT = 1
HEAD_WORDS = 8
DATA_AT = 4096
HALF_BYTES = 4 << 20

_EPOCH, _LENGTH, _CRC = 0, 1, 2
_SIGNED = Layout("=QQ")


class ConfigBuffer(FixedStructure):
    """The double buffer; one writer, any number of readers."""

    NAME = "config-buffer"
    HEAD = (MAGIC, LAYOUT, HALF_BYTES)
    SIZE = DATA_AT + 2 * HALF_BYTES

    def newest(self) -> int:
        """Highest epoch published, 0 for none."""
        return max(self._segment.words[_head(half) + _EPOCH] for half in (0, 1))

    def publish(self, epoch: int, blob: bytes) -> None:
        """Write ``blob`` as ``epoch`` (supervisor only); the epoch before it stays readable."""
        words = self._segment.words
        newest = self.newest()
        if epoch <= newest:
            raise ValueError(f"config epoch {epoch} is not after {newest}")
        if len(blob) > HALF_BYTES:
            raise ConfigError(
                f"the compiled configuration has {len(blob)} bytes; at most {HALF_BYTES} fit",
                reason="config_too_large",
            )
        half = 1 if words[_head(0) + _EPOCH] == newest else 0
        head, at = _head(half), _data(half)
        words[head + _EPOCH] = 0
        self._segment.map[at : at + len(blob)] = blob
        words[head + _LENGTH] = len(blob)
        words[head + _CRC] = _crc(epoch, blob)
        words[head + _EPOCH] = epoch

    def read(self, epoch: int) -> bytes | None:
        """Copy the blob of ``epoch``; ``None`` when it was overwritten or is not there yet."""
        words = self._segment.words
        for half in (0, 1):
            head, at = _head(half), _data(half)
            if epoch and words[head + _EPOCH] == epoch:
                length = min(words[head + _LENGTH], HALF_BYTES)
                crc = words[head + _CRC]
                blob = self._segment.map[at : at + length]
                return blob if _crc(epoch, blob) == crc else None
        return None


def _head(half: int) -> int:
    return HEAD_WORDS * (1 + half)


def _data(half: int) -> int:
    return DATA_AT + half * HALF_BYTES


def _crc(epoch: int, blob: bytes) -> int:
    return crc32(blob, crc32(_SIGNED.pack(epoch, len(blob))))
