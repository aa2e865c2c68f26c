"""A host as the observers see it, set by hand."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class FakeSeat:
    """A seat's words."""

    epoch: int = 0
    pid: int = 0
    slot: int = 0xFFFF
    state: int = 0
    config_ack: int = 1
    open_calls: int = 0
    loop_lag_us: int = 0


@dataclass
class FakePlane:
    """Two workers, a spare, an overlap, control."""

    workers: int = 2
    seats: int = 5
    host_state: int = 1
    started_at_wall_ms: int = 0
    restarts_total: int = 0
    config_epoch: int = 1
    slots: list[int] = field(default_factory=lambda: [0, 1])
    lines: list[FakeSeat] = field(default_factory=lambda: [FakeSeat() for _ in range(5)])

    def slot_seat(self, slot: int) -> int:
        """Who serves the slot."""
        return self.slots[slot]

    def seat(self, seat: int) -> FakeSeat:
        """A seat's lines."""
        return self.lines[seat]


def running_host() -> FakePlane:
    """Both shards and control are ready."""
    plane = FakePlane()
    for number, slot in ((0, 0), (1, 1), (4, 0xFFFF)):
        plane.lines[number] = FakeSeat(epoch=1, slot=slot, state=3, open_calls=2)
    return plane


@dataclass
class FakeSample:
    """One series."""

    labels: tuple[tuple[str, str], ...] = ()
    value: float = 0.0
    buckets: tuple[tuple[float, int], ...] = ()
    sum: float = 0.0


@dataclass
class FakeFamily:
    """All series of a name."""

    name: str
    kind: str = "gauge"
    samples: tuple[FakeSample, ...] = (FakeSample(),)
    help: str = "Help."


@dataclass
class FakeArena:
    """Some families."""

    families: list[FakeFamily] = field(default_factory=list)

    def collect(self) -> list[FakeFamily]:
        """All of them."""
        return self.families


def gauge(name: str, value: float, **labels: str) -> FakeFamily:
    """A family of one gauge."""
    return FakeFamily(name, "gauge", (FakeSample(tuple(labels.items()), value),))
