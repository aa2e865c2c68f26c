"""When the open calls are copied to disk, and who is told.

``no``: there is no copy.  ``everysec``: once a second, if something changed.  ``always``: also
whenever a worker asks, with the slots it has just opened; it is answered once they are synced, or
once the disk refused them.
What is asked during a sync waits for the next one, which serves all who came meanwhile.

Invariants: the loop never waits for the disk; a sync that failed is never answered as one that did
not.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from tpo_mp.shm.frames import HEAD, Kind
from tpo_mp.shm.open_slots import OpenSlots
from tpo_mp.shm.plane import Plane
from tpo_mp.shm.registry import Registry
from tpo_mp.shm.registry_layout import copy_name
from tpo_mp.store.framing import Disk
from tpo_mp.store.open_copy import OpenCopy
from tpo_mp.store.sealing import UNSEALED, Seals
from tpo_mp.store.segments import Durability
from tpo_mp.store.shelf import Shelf

from .copyist import Copyist
from .keeper import Keeper
from .reruns import Sender

EVERY_S = 1.0


class Copies:
    """Decides when; lives on the loop."""

    def __init__(
        self,
        plane: Plane,
        registry: Registry,
        keeper: Keeper,
        mail: Sender,
        state_dir: Path,
        disk: Disk | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._plane = plane
        self._keeper = keeper
        self._mail = mail
        self._clock = clock
        self._slots = OpenSlots(registry)
        self._slots_per_seat = registry.slots_per_seat
        self.copyist = Copyist(self._slots, OpenCopy(state_dir / copy_name(registry.run), disk), 0)
        self._durability: Durability = "no"
        self._due = 0.0
        self._updating = False
        self._adding = False
        self._asked: list[tuple[int, int, int, tuple[int, ...]]] = []

    def configure(
        self,
        durability: Durability,
        cap_bytes: int,
        *,
        bodies: bool = True,
        seals: Seals = UNSEALED,
    ) -> None:
        """Take another level from now on; without ``bodies`` no text of a call is copied."""
        self._durability = durability
        copyist = self.copyist
        copyist.cap_bytes = cap_bytes
        before = copyist.bodies, copyist.seals
        copyist.bodies, copyist.seals = bodies, seals
        if durability == "no" or before != (bodies, seals):  # what was copied otherwise must go
            self._keeper.submit(lambda _: self.copyist.remove())

    def tick(self) -> None:
        """Four times a second: start a copy when one is due."""
        now = self._clock()
        if self._durability == "no" or self._updating or now < self._due:
            return
        self._due = now + EVERY_S
        self._updating = True

        def done(_: bool | None) -> None:
            self._updating = False

        self._keeper.submit(self._update, done)

    def ask(self, seat: int, number: int, slots: tuple[int, ...]) -> None:
        """A worker holds the calls in these slots until it gets ``number`` back."""
        self._asked.append((seat, self._plane.seat(seat).epoch, number, slots))
        if self._durability != "always":
            self._answer(
                self._asked, Kind.SYNCED
            )  # the worker has not read the new configuration yet
            self._asked = []
        elif not self._adding:
            self._add()

    def end(self) -> None:
        """This run is over: leave no copy unless something is open still."""
        self._durability = "no"
        self._keeper.submit(lambda shelf: self.copyist.end(shelf.records_end))

    def _add(self) -> None:
        asked, self._asked = self._asked, []
        self._adding = True
        slots = self._slots
        places = [
            slots.place(seat, slot)
            for seat, _, _, opened in asked
            for slot in opened
            if slot < self._slots_per_seat
        ]

        def done(synced: bool | None) -> None:
            self._adding = False
            if synced is not None:  # else there is nobody who could say
                self._answer(asked, Kind.SYNCED if synced else Kind.UNSYNCED)
            if self._asked:
                self._add()

        self._keeper.submit(lambda shelf: self.copyist.add(places, shelf.records_end), done)

    def _answer(self, asked: list[tuple[int, int, int, tuple[int, ...]]], how: Kind) -> None:
        for seat, epoch, number, _ in asked:
            if self._plane.seat(seat).epoch == epoch:
                self._mail.send(seat, [HEAD.pack(how, number)])

    def _update(self, shelf: Shelf) -> bool:
        """On the keeper's thread."""
        # A slot is given back once its letter is written: the letter must be synced before the slot
        # is seen to be empty.
        shelf.letters.sync()
        return self.copyist.update(shelf.records_end)
