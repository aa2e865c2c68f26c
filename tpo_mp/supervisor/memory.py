"""Everything the processes of one host share, made and kept by the supervisor.

Invariants: made once, before the first child; handed down by descriptor; the supervisor writes the
plane and the config buffer, and of a dead seat's structures only what their docstrings allow it.
"""

from __future__ import annotations

from pathlib import Path
from time import monotonic

from tpo_mp.shm.cache import CacheSegment
from tpo_mp.shm.claims import ClaimSegment
from tpo_mp.shm.doorbell import Doorbell
from tpo_mp.shm.engine_rings import EngineRings, docks_for
from tpo_mp.shm.epochs import ConfigBuffer
from tpo_mp.shm.journal import JournalSegment
from tpo_mp.shm.ledger import LEDGER_ROWS, look_at
from tpo_mp.shm.live import LiveSegment
from tpo_mp.shm.metrics import MetricsArena
from tpo_mp.shm.plane import Command, Plane
from tpo_mp.shm.prefixes import PrefixSegment
from tpo_mp.shm.quotas import QuotaSegment
from tpo_mp.shm.registry import Registry
from tpo_mp.shm.ring import RingMesh
from tpo_mp.shm.rows import RowTable
from tpo_mp.shm.scores import ScoreSegment
from tpo_mp.shm.shares import ShareSegment
from tpo_mp.shm.standing import drain_row, health_row, read_standing

from .state import Child, Intent

_COMMANDS = {
    Intent.PARK: Command.PARK,
    Intent.RUN: Command.RUN,
    Intent.DRAIN: Command.DRAIN,
    Intent.STOP: Command.STOP,
}


class HostMemory:
    """The segments of one host."""

    def __init__(
        self,
        *,
        workers: int,
        seats: int,
        install_key: bytes,
        max_open: int,
        registry: Path,
        cache_bytes: int = 1 << 20,
        engines: int = 0,
    ) -> None:
        self.registry_path = registry
        self.plane = Plane.create(workers, seats, install_key)
        self.rings = RingMesh.create(seats)
        self.metrics = MetricsArena.create(seats)
        self.registry = Registry.create_file(registry, seats, max_open)
        self.config = ConfigBuffer.create()
        self.ledger = RowTable.create(LEDGER_ROWS)
        self.quotas = QuotaSegment.make(seats)
        self.live = LiveSegment.create()
        self.journal = JournalSegment.create()
        self.shares = ShareSegment.create(seats)
        self.scores = ScoreSegment.create(seats)
        self.cache = CacheSegment.create(seats - 1, cache_bytes)  # control answers no calls
        self.claims = ClaimSegment.create()
        self.prefixes = PrefixSegment.create()
        self.doorbells = [Doorbell.create() for _ in range(seats)]
        docks = docks_for(engines)
        self.engine_rings = EngineRings.create(seats - 1, docks)  # control asks them by HTTP
        self.engine_bells = [Doorbell.create() for _ in range(docks)]

    def occupy(self, seat: int, slot: int, intent: Intent) -> int:
        """Prepare a seat for a new process; return its epoch."""
        self.rings.expire(seat, self.plane.seats - 1)
        epoch = self.plane.seat(seat).occupy(slot, _COMMANDS[intent])
        if seat < self.engine_rings.seats:
            self.engine_rings.occupy_seat(seat, epoch)
        return epoch

    def vacate(self, child: Child) -> None:
        """Clear up after a process that is reaped, and have control collect what it left open."""
        self.registry.orphan_seat(child.seat, child.epoch)
        # Call records and dead letters on their way to control are worth reading still.
        self.rings.reset_seat(child.seat, heir=self.plane.seats - 1)
        self.metrics.retire(child.seat)
        lines = self.plane.seat(child.seat)
        lines.vacate()
        # Peers learn of the death from the epoch: whatever they sent to the old one is lost.
        lines.epoch = child.epoch + 1
        if child.seat < self.engine_rings.seats:
            self.engine_rings.vacate_seat(child.seat, lines.epoch)
        for bell in (*self.doorbells, *self.engine_bells):
            bell.ring()

    def command(self, child: Child, intent: Intent) -> None:
        """Write a seat's command word and wake its loop."""
        self.plane.seat(child.seat).command = _COMMANDS[intent]
        self.doorbells[child.seat].ring()

    def assign(self, child: Child, slot: int) -> None:
        """Write which slot a seat serves; the command that follows makes it act."""
        self.plane.seat(child.seat).slot = slot

    def publish_config(self, epoch: int, blob: bytes) -> None:
        """Publish a config epoch and wake everyone."""
        self.config.publish(epoch, blob)
        self.plane.config_epoch = epoch
        for bell in self.doorbells:
            bell.ring()

    def nothing_left_open(self) -> bool:
        """Say whether every call of this run is finished or harvested (no process lives now)."""
        self.registry.orphan_all()
        return next(iter(self.registry.orphans()), None) is None

    def state_of(self, backend: str) -> str:
        """How a backend stands."""
        health, drain = (look_at(self.ledger, row(backend)) for row in (health_row, drain_row))
        return read_standing(health, drain).standing(monotonic()).name.lower()

    def close(self) -> None:
        """Close every segment; the memory goes when the last process has."""
        for part in (self.plane, self.rings, self.metrics, self.registry, self.config):
            part.close()
        self.quotas.close()
        self.live.close()
        self.journal.close()
        self.shares.close()
        self.scores.close()
        self.cache.close()
        self.claims.close()
        self.prefixes.close()
        self.ledger.close()
        self.engine_rings.close()
        for bell in (*self.doorbells, *self.engine_bells):
            bell.close()
