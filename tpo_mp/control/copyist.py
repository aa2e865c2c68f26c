"""Keeps the copy of the open calls on disk in line with the registry; lives on the keeper's thread.

Only what changed is written: calls opened since the last look, and places where nothing is open any
more.  The file is written anew when less than half of it is still true.

Invariants: while nothing changes nothing is written; the bodies that count stay below
``cap_bytes``, and the file below twice that and ``SLACK_BYTES``.  A call beyond the cap is copied
without its body, flagged TRUNCATED and counted; without ``bodies`` all are copied so.  With keys in
``seals`` bodies are sealed.
Weakness: after a failed write the file on disk is an older truth, until one succeeds.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from itertools import chain

from tpo_mp.shm.open_slots import OpenCall, OpenSlots
from tpo_mp.shm.registry import SlotFlag
from tpo_mp.store.open_copy import CallsOver, CopiedCall, CopyMark, OpenCopy, encode
from tpo_mp.store.sealing import UNSEALED

SLACK_BYTES = 4 << 20
RETRY_S = 5.0
_RECORD_BYTES = 64


class Copyist:
    """Writes one registry's copy; its public numbers may be read from any thread."""

    def __init__(
        self,
        slots: OpenSlots,
        file: OpenCopy,
        cap_bytes: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.cap_bytes = cap_bytes
        self.bodies = True
        self.seals = UNSEALED
        self.cut = 0
        self.errors = 0
        self.broken = False
        self._slots = slots
        self._file = file
        self._clock = clock
        self._retry_at = 0.0
        self._began: dict[int, int] = {}
        self._sizes: dict[int, int] = {}
        self._live = 0
        self._cut: set[int] = set()

    @property
    def calls(self) -> int:
        """Calls that the file says are open."""
        return len(self._began)

    @property
    def file_bytes(self) -> int:
        """Size of the file."""
        return self._file.size

    def update(self, mark: tuple[int, int]) -> bool:
        """Make the file say what is open now; ``mark`` is where the call records ended before.

        Answers whether everything that was open when this began is on disk.
        """
        now = self._slots.scan()
        began = self._began
        if now == began if self._file.usable else not now and self._file.absent:
            self.broken = False
            return True
        over = [place for place in began if place not in now]
        for place in over:
            self._forget(place)
        records = [encode(CopyMark(*mark))]
        if not self._file.usable or self._file.size > 2 * self._live + SLACK_BYTES:
            self._forget_all()
            self._cut.intersection_update(now.values())
            return self._write(self._file.replace, chain(records, self._copied(now)))
        if over:
            records.append(encode(CallsOver(over)))
        fresh = (place for place, started_ns in now.items() if began.get(place) != started_ns)
        return self._write(self._file.append, chain(records, self._copied(list(fresh))))

    def add(self, places: Iterable[int], mark: tuple[int, int]) -> bool:
        """Have the calls at these places in the file; answers as ``update`` does."""
        if not self._file.usable:
            return self.update(mark)
        records = list(self._copied(places))
        return not records or self._write(self._file.append, records)

    def end(self, mark: tuple[int, int]) -> None:
        """Say the last word of this run: no file when nothing is open."""
        if self._slots.scan():
            self.update(mark)
            self._file.close()
        else:
            self.remove()

    def remove(self) -> None:
        """Keep no copy."""
        self._forget_all()
        self.broken = False
        self._file.remove()

    # -- inside -------------------------------------------------------------------------------

    def _write(self, how: Callable[[Iterable[bytes]], None], records: Iterable[bytes]) -> bool:
        if self.broken and self._clock() < self._retry_at:
            return False
        try:
            how(records)
        except OSError:
            self.errors += 1
            self.broken = True
            self._retry_at = self._clock() + RETRY_S
            self._file.close()
            self._forget_all()
            return False
        self.broken = False
        return True

    def _copied(self, places: Iterable[int]) -> Iterator[bytes]:
        """The records of the calls at these places, as far as the file does not have them."""
        for place in places:
            call = self._slots.read(place)
            known = self._began.get(place)
            if call is None:
                if known is not None:
                    self._forget(place)
                    yield encode(CallsOver([place]))
            elif call.started_ns != known:
                yield self._record(place, call)

    def _record(self, place: int, call: OpenCall) -> bytes:
        self._forget(place)
        body, flags = call.body, call.flags
        size = _RECORD_BYTES + len(call.meta) + len(body)
        if body and not self.bodies:
            size -= len(body)
            body, flags = b"", flags | SlotFlag.TRUNCATED
        elif body and self._live + size > self.cap_bytes:
            size -= len(body)
            body, flags = b"", flags | SlotFlag.TRUNCATED
            self.cut += call.started_ns not in self._cut
            self._cut.add(call.started_ns)
        self._began[place] = call.started_ns
        self._sizes[place] = size
        self._live += size
        sealed = bool(body) and bool(self.seals)
        if sealed:
            body = self.seals.seal(body, call.call_id)
        return encode(CopiedCall(place, call.call_id, flags, call.meta, body, sealed))

    def _forget(self, place: int) -> None:
        self._live -= self._sizes.pop(place, 0)
        self._began.pop(place, None)

    def _forget_all(self) -> None:
        self._began.clear()
        self._sizes.clear()
        self._live = 0
