"""Control's end of the rings, over real rings in this process."""

from __future__ import annotations

from collections.abc import Iterator
from multiprocessing import connection

import pytest

from tpo_mp.control import mail as module
from tpo_mp.control.mail import Mail
from tpo_mp.shm.doorbell import Doorbell
from tpo_mp.shm.plane import Command, Plane
from tpo_mp.shm.ring import RingMesh

SEATS = 5
CONTROL = SEATS - 1


class House:
    """Rings, plane and bells of a small host."""

    def __init__(self) -> None:
        self.plane = Plane.create(2, SEATS, bytes(16))
        self.mesh = RingMesh.create(SEATS)
        self.bells = [Doorbell.create() for _ in range(SEATS)]
        self.taken: list[tuple[int, bytes]] = []
        for seat in (0, 1):
            self.plane.seat(seat).occupy(seat, Command.RUN)
        self.mail = Mail(
            self.mesh, self.plane, CONTROL, 1, self.bells,
            lambda seat, record: self.taken.append((seat, record)),
        )  # fmt: skip

    def close(self) -> None:
        """Give everything back."""
        for part in (self.plane, self.mesh, *self.bells):
            part.close()


@pytest.fixture
def house() -> Iterator[House]:
    """A small host."""
    made = House()
    yield made
    made.close()


def test_records_of_every_seat_are_handled(house: House) -> None:
    """With their source, a bounded number per turn."""
    first = house.mesh.writer(0, CONTROL, 1)
    second = house.mesh.writer(1, CONTROL, 1)
    for n in range(module.PER_RING + 3):
        assert first.push(b"a%d" % n)
    assert second.push(b"b")
    assert house.mail.drain()
    assert len(house.taken) == module.PER_RING + 1
    assert (1, b"b") in house.taken
    assert not house.mail.drain()
    assert len(house.taken) == module.PER_RING + 4


def test_what_does_not_fit_waits_for_room(house: House) -> None:
    """Order is kept, nothing is lost, and the sender learns the end."""
    reader = house.mesh.reader(CONTROL, 0)
    ends: list[bool] = []
    sent = [bytes([n % 256]) * 30_000 for n in range(40)]
    for record in sent:
        house.mail.send(0, [record], ends.append)
    assert 0 < len(ends) < 40
    got: list[bytes] = []
    while house.mail.flush():
        got += reader.drain()
    got += reader.drain()
    assert got == sent
    assert ends == [True] * 40


def test_mail_for_a_dead_occupant_is_dropped(house: House) -> None:
    """A new epoch never gets the old one's answers."""
    ends: list[bool] = []
    for _ in range(20):
        house.mail.send(0, [bytes(30_000)], ends.append)
    waiting = 20 - len(ends)
    house.plane.seat(0).occupy(0, Command.RUN)
    assert not house.mail.flush()
    assert ends[-waiting:] == [False] * waiting


def test_what_is_held_is_bounded(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    """Over the cap a parcel is refused at once and counted."""
    monkeypatch.setattr(module, "MAX_HELD", 500_000)
    ends: list[bool] = []
    for _ in range(40):
        house.mail.send(0, [bytes(30_000)], ends.append)
    assert house.mail.refused == ends.count(False) > 0


def test_the_bell_is_rung(house: House) -> None:
    """A sent record wakes its reader, also when the ring is full."""
    house.mail.send(0, [b"x"])
    assert house.bells[0].fileno() >= 0
    assert connection.wait([house.bells[0].fileno()], 0)
