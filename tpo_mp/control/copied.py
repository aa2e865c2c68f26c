"""The calls that an earlier run's copy on disk says were open: read after power was lost.

It is harvested like the registry it was a copy of, which lived in memory and is gone.

A call whose record came after the copy is finished; so the copy remembers where the log of call
records ended when it was made.
Known weakness: a call that finished within the last second before power was lost, and whose record
was lost with it, becomes a letter all the same.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from tpo_mp.shm.registry import Orphan, SlotFlag, SlotState
from tpo_mp.shm.registry_layout import copy_name
from tpo_mp.store.open_copy import DRAFT, OpenCopyReader
from tpo_mp.store.sealing import UNSEALED, Seals
from tpo_mp.store.shelf import Shelf

from .lost import record_ids

_NAME = re.compile(r"registry\.synced-([0-9a-f]{16})")


def copies_in(state_dir: Path, own: int) -> dict[int, Path]:
    """The copies that earlier runs left, by the name of their registry; unfinished ones go."""
    found: dict[int, Path] = {}
    for path in state_dir.glob(copy_name() + "*"):
        name = _NAME.fullmatch(path.name.removesuffix(DRAFT))
        if name is None or int(name[1], 16) == own:
            continue
        if path.name.endswith(DRAFT):
            path.unlink(missing_ok=True)
        else:
            found[int(name[1], 16)] = path
    return found


class CopiedCalls:
    """A copy, seen as a registry full of orphans."""

    def __init__(self, path: Path, seals: Seals = UNSEALED) -> None:
        """Read the file; raises ``OSError``, ``Locked`` when it needs another key."""
        self._file = OpenCopyReader(path, seals)
        self._written_ms = int(path.stat().st_mtime * 1e3)
        self._finished: frozenset[str] | None = None

    def orphans(self) -> Iterator[Orphan]:
        """Every call that is not harvested yet."""
        for call in self._file.calls():
            yield Orphan(
                seat=0,
                slot=call.place,
                epoch=0,
                call_id=call.call_id,
                state_before=SlotState.ACCEPTED,
                flags=SlotFlag(call.flags & 15),
                attempts=0,
                started_wall_ms=self._written_ms,  # it was open then; when it began is not copied
                meta=call.meta,
                body=None if call.sealed else call.body,
                bytes_sent=-1,  # a call is copied once, when it is opened
            )

    def finished(self, shelf: Shelf) -> frozenset[str]:
        """Ids of calls that finished after the copy was written."""
        if self._finished is None:
            mark = self._file.mark
            batches = () if mark is None else shelf.records_after(*mark)
            self._finished = frozenset(record_ids(batches))
        return self._finished

    def harvested(self, seat: int, slot: int) -> None:  # noqa: ARG002 - a registry has seats
        """Forget an orphan, once the dead letter is written."""
        self._file.drop(slot)

    def close(self) -> None:
        """Nothing is held."""
