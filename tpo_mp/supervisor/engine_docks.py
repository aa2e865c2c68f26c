"""Places of engines in shared memory: taken when one is started, given back when it was reaped.

What an engine is told of its dock is one JSON object in the variable ``ENGINE_RINGS``::

    {"fd": …, "seats": …, "docks": …, "dock": …, "epoch": …, "bell": [r, w], "bells": [w, …]}

``bell`` is the engine's own, ``bells`` are the workers' by seat, to be rung only.

Invariants: an engine that finds no dock is started all the same and asked by HTTP.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

from tpo_mp.shm.doorbell import Doorbell
from tpo_mp.shm.engine_rings import NO_DOCK, EngineRings

Ticket: TypeAlias = Mapping[str, Any]
NO_TICKET: Final[Ticket] = {}


def descriptors(ticket: Ticket) -> tuple[int, ...]:
    """What an engine with this ticket inherits."""
    return tuple({ticket["fd"], *ticket["bell"], *ticket["bells"]}) if ticket else ()


@dataclass(frozen=True, slots=True)
class EngineDocks:
    """The docks of one host."""

    rings: EngineRings
    engine_bells: Sequence[Doorbell]
    seat_bells: Sequence[Doorbell]

    def take(self, name: str) -> Ticket:
        """Take one for an engine that is started now; ``NO_TICKET``: none is left."""
        rings = self.rings
        dock, epoch = rings.occupy_dock(name)
        if dock == NO_DOCK:
            return NO_TICKET
        return {
            "fd": rings.fd, "seats": rings.seats, "docks": rings.docks, "dock": dock,
            "epoch": epoch, "bell": self.engine_bells[dock].fds,
            "bells": [bell.fds[1] for bell in self.seat_bells[: rings.seats]],
        }  # fmt: skip

    def leave(self, ticket: Ticket) -> None:
        """Its engine was reaped: whoever waits for it learns so at once."""
        if not ticket:
            return
        self.rings.vacate_dock(ticket["dock"])
        for bell in self.seat_bells:
            bell.ring()

    def serves(self, ticket: Ticket) -> bool:
        """Whether the engine takes calls there."""
        return bool(ticket) and self.rings.serves(ticket["dock"])
