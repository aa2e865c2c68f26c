"""Durability ``always``: calls wait for the disk, together, and never for long."""

from __future__ import annotations

from array import array
from collections.abc import Awaitable, Callable
from typing import Any

from tests.support.fake_env import SilentMetrics, SilentSeries, make_call
from tests.support.fake_net import FakeLoop
from tpo_mp.errors import Shed
from tpo_mp.pipeline.promise import Promise, run
from tpo_mp.shm.frames import HEAD, Kind
from tpo_mp.types import Call, Reply
from tpo_mp.worker.syncs import MAX_ASKED, WAIT_S, Syncs


class Loop(FakeLoop):
    """Keeps timers for the test."""

    def __init__(self) -> None:
        super().__init__()
        self.timers: list[tuple[float, Callable[..., object], tuple[Any, ...]]] = []

    def call_later(self, delay_s: float, callback: Callable[..., object], *args: Any) -> None:
        """Keep a timer."""
        self.timers.append((delay_s, callback, args))

    def late(self) -> None:
        """Every timer fires."""
        timers, self.timers = self.timers, []
        for _, callback, args in timers:
            callback(*args)


class Desk:
    """Syncs, and what reached control."""

    def __init__(self) -> None:
        self.loop = Loop()
        self.sent: list[bytes] = []
        self.room = True
        self.late = SilentSeries()
        metrics = SilentMetrics()
        metrics.counter = lambda *_a, **_k: self.late  # type: ignore[method-assign,assignment]
        self.syncs = Syncs(self._send, self.loop, metrics)  # type: ignore[arg-type]
        self.served: list[int] = []
        self.errors: list[BaseException | None] = []
        self.serve = self.syncs.first(self._core)

    def _send(self, record: bytes) -> bool:
        self.sent.append(record)
        return self.room

    def _core(self, call: Call) -> Awaitable[Reply]:
        self.served.append(call.slot)
        out: Promise[Reply] = Promise()
        out.resolve(Reply(200, b""))
        return out

    def ask(self, *slots: int) -> None:
        """Calls arrive."""
        for slot in slots:
            run(self.serve(make_call(b"", slot=slot)), lambda _r, e: self.errors.append(e))

    def asked(self) -> list[tuple[int, list[int]]]:
        """Number and slots of each record sent."""
        found = []
        for record in self.sent:
            kind, number = HEAD.unpack_from(record)
            assert kind == Kind.SYNC
            slots = array("I")
            slots.frombytes(record[HEAD.size :])
            found.append((number, list(slots)))
        return found


def test_calls_of_one_turn_ask_together() -> None:
    """And go on when control has answered."""
    desk = Desk()
    desk.ask(1, 2, 3)
    assert desk.sent == []
    desk.loop.run()
    ((number, slots),) = desk.asked()
    assert slots == [1, 2, 3]
    assert desk.served == []
    desk.syncs.done(number)
    assert desk.served == [1, 2, 3]
    desk.syncs.done(number)
    desk.loop.late()
    assert desk.late.value == 0


def test_disk_that_is_late_is_not_waited_for() -> None:
    """The calls go on, and are counted."""
    desk = Desk()
    desk.room = False
    desk.ask(1, 2)
    desk.loop.run()
    assert [delay for delay, _, _ in desk.loop.timers] == [WAIT_S]
    desk.loop.late()
    assert desk.served == [1, 2]
    assert desk.late.value == 2


def test_each_turn_has_its_own_number() -> None:
    """An answer frees only those it names."""
    desk = Desk()
    desk.ask(1)
    desk.loop.run()
    desk.ask(2)
    desk.loop.run()
    (first, _), (second, _) = desk.asked()
    desk.syncs.done(second)
    assert desk.served == [2]
    desk.syncs.done(first)
    assert desk.served == [2, 1]


def test_records_stay_small() -> None:
    """A burst asks in several."""
    desk = Desk()
    desk.ask(*range(MAX_ASKED + 10))
    desk.loop.run()
    assert [len(slots) for _, slots in desk.asked()] == [MAX_ASKED, 10]


def test_a_call_that_the_disk_refused_is_refused() -> None:
    """It goes nowhere, and its client is told when to come again."""
    desk = Desk()
    desk.ask(1, 2)
    desk.loop.run()
    ((number, _),) = desk.asked()
    desk.syncs.refused(number)
    assert desk.served == []
    for error in desk.errors:
        assert isinstance(error, Shed)
        assert (error.status, error.reason, error.retry_after_s) == (507, "not_on_disk", 5.0)
    assert len(desk.errors) == 2
    desk.loop.late()
    assert (desk.served, desk.late.value) == ([], 0)
