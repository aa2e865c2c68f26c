"""One seat's rings: sending, reading, ringing, damage."""

from __future__ import annotations

import select
from typing import Any

import pytest

from tests.support.fake_env import SilentMetrics, SilentSeries
from tests.support.fake_net import FakeLoop
from tests.support.fake_shards import FakeHost
from tpo_mp.worker.links import Links


class Metrics(SilentMetrics):
    """Remembers its counters."""

    def __init__(self) -> None:
        self.counters: dict[str, SilentSeries] = {}

    def counter(self, name: str, help: str, **labels: str) -> SilentSeries:
        """Make or find a counter."""
        return self.counters.setdefault(name, SilentSeries())


class Linked:
    """Two seats' links, without anything behind them."""

    def __init__(self, host: FakeHost) -> None:
        self.host = host
        self.loops = [FakeLoop(), FakeLoop()]
        self.metrics = [Metrics(), Metrics()]
        self.taken: list[Any] = []
        self.rung = 0
        self.ends = [self._link(seat) for seat in (2, 3)]

    def _link(self, seat: int) -> Links:
        return Links(
            seat=seat, epoch=1, plane=self.host.plane, mesh=self.host.rings,
            doorbells=[bell.fds for bell in self.host.bells],
            loop=self.loops[seat - 2],  # type: ignore[arg-type]
            metrics=self.metrics[seat - 2],
            take=lambda source, record: self.taken.append((seat, source, record)),
            rung=self._rang,
        )  # fmt: skip

    def _rang(self) -> None:
        self.rung += 1

    def bell_is_rung(self, seat: int) -> bool:
        """Whether a seat's descriptor is readable."""
        poll = select.poll()
        poll.register(self.host.bells[seat].fileno(), select.POLLIN)
        return bool(poll.poll(0))


@pytest.fixture
def linked(host: FakeHost) -> Linked:
    """The spare seats of a host."""
    return Linked(host)


def test_records_arrive_in_order_with_their_source(linked: Linked) -> None:
    """By either way of sending."""
    here, there = linked.ends
    assert here.send(3, b"one")
    assert here.push(3, b"tw", b"o")
    assert there.send(2, b"back")
    there.poll()
    here.poll()
    assert linked.taken == [(3, 2, b"one"), (3, 2, b"two"), (2, 3, b"back")]


def test_bells_ring_once_per_turn(linked: Linked) -> None:
    """However many records went, to each seat that got some."""
    here = linked.ends[0]
    for _ in range(10):
        here.send(3, b"x")
    assert not linked.bell_is_rung(3)
    assert len(linked.loops[0].soon) == 1
    linked.loops[0].run()
    assert linked.bell_is_rung(3)
    linked.loops[1].readers[linked.host.bells[3].fileno()]()
    assert not linked.bell_is_rung(3)
    assert len(linked.taken) == 10
    assert linked.rung == 1


def test_quiet_records_do_not_ring(linked: Linked) -> None:
    """Their reader looks by itself; only a refusal wakes it."""
    here = linked.ends[0]
    here.send(3, b"x", ring=False)
    linked.loops[0].run()
    assert not linked.bell_is_rung(3)
    while here.send(3, b"x" * 10_000, ring=False):
        pass
    linked.loops[0].run()
    assert linked.bell_is_rung(3)


def test_full_ring_is_the_senders_to_know(linked: Linked) -> None:
    """Refused, counted, and room comes back by reading; control frames have a reserve."""
    here, there = linked.ends
    sent = 0
    while here.send(3, b"x" * 1000):
        sent += 1
    assert linked.metrics[0].counters["tpo_ring_full_total"].value == 1
    assert linked.metrics[0].counters["tpo_ring_records_total"].value == sent
    assert here.send(3, b"credit", control=True)
    there.poll()
    assert len(linked.taken) == sent + 1
    assert here.push(3, b"again", b"")


def test_everything_is_read_however_much_there_is(linked: Linked) -> None:
    """More than one batch, also when taking it makes more."""
    here, there = linked.ends
    for i in range(1000):
        here.send(3, b"%d" % i)
    there.poll()
    assert [record for _, _, record in linked.taken] == [b"%d" % i for i in range(1000)]


def test_damage_is_told_and_counted(linked: Linked) -> None:
    """Before anything that came after it is taken."""
    here, there = linked.ends
    told: list[tuple[int, int]] = []
    there.damaged = lambda source: told.append((source, len(linked.taken)))
    here.send(3, b"lost" * 10)
    ring = linked.host.rings.segment.buf
    at = bytes(ring).index(b"lostlost")
    ring[at : at + 4] = b"LOST"
    there.poll()
    here.send(3, b"after")
    there.poll()
    assert told == [(2, 0)]
    assert linked.taken == [(3, 2, b"after")]
    assert linked.metrics[1].counters["tpo_ring_corrupt_total"].value >= 1


def test_life_is_epoch_and_process(linked: Linked) -> None:
    """Either change is a death."""
    here = linked.ends[0]
    first = here.life_of(0)
    linked.host.plane.seat(0).pid += 1
    second = here.life_of(0)
    linked.host.die(0)
    assert len({first, second, here.life_of(0)}) == 3


def test_closing_stops_listening(linked: Linked) -> None:
    """The descriptor is the supervisor's and stays open."""
    linked.ends[0].close()
    assert linked.loops[0].readers == {}
    linked.host.bells[2].ring()
    assert linked.bell_is_rung(2)
