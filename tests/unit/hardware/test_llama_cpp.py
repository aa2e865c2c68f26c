"""The account of a llama.cpp server's slots."""

from __future__ import annotations

from dataclasses import replace

from hardware.llama_cpp import FEATURE, Slots
from tests.support.fake_env import FakeShares, FakeWorld
from tpo_mp.config.values import HealthCheck


class Host:
    """Two workers before one server."""

    def __init__(self, slots: int) -> None:
        self.world = FakeWorld()
        self.shares = FakeShares()
        self.workers = [
            Slots("l", slots, replace(self.world.env, shares=self.shares.other(seat)))
            for seat in (0, 1)
        ]

    def take(self, worker: int, session: int) -> int | None:
        """A slot for a call."""
        self.world.advance(1.0)
        return self.workers[worker].take(session)

    def call(self, worker: int, session: int) -> int | None:
        """A whole call; the slot it had."""
        slot = self.take(worker, session)
        if slot is not None:
            self.workers[worker].give(slot)
        return slot


def test_a_session_has_its_slot_on_every_worker() -> None:
    """And a new one takes the slot that was not given for longest."""
    host = Host(2)
    assert [host.call(0, 7), host.call(1, 8), host.call(1, 7), host.call(0, 8)] == [0, 1, 0, 1]
    assert host.call(0, 9) == 0


def test_no_slot_is_given_twice_nor_waited_for() -> None:
    """The session's own is busy, or all are: the server chooses."""
    host = Host(2)
    assert (host.take(0, 7), host.take(1, 7)) == (0, None)
    assert (host.take(1, 8), host.take(0, 9)) == (1, None)


def test_a_busy_slot_is_waited_for_where_that_is_sooner_than_reading_anew() -> None:
    """By one call of the host; not where it is unlikely to pay, nor before anything is known."""
    host = Host(2)
    slots = host.workers[0]
    assert host.call(0, 7) == 0
    slots.note(0, 7, 4000, 2.0)
    assert (host.take(0, 7), host.take(0, 7)) == (0, None)  # what a token takes is not known
    slots.learn(1000, 1.0)  # so 4000 tokens take 4 s, and the call there a second yet
    assert (host.take(0, 7), host.take(0, 7)) == (0, None)
    slots.give(0)
    slots.give(0)
    slots.note(0, 7, 100, 2.0)  # a tenth of a second
    assert (host.take(0, 7), host.take(0, 7)) == (0, None)
    assert host.take(0, 8) == 1


def test_another_session_in_a_slot_holds_nothing_of_the_last() -> None:
    """What it held is not what the new one would save."""
    host = Host(1)
    slots = host.workers[0]
    slots.learn(1000, 1.0)
    assert host.call(0, 7) == 0
    slots.note(0, 7, 4000, 2.0)
    assert host.call(0, 8) == 0
    assert (host.take(0, 8), host.take(0, 8)) == (0, None)


def test_calls_without_a_session_are_counted_too() -> None:
    """They leave nobody's conversation behind that would be looked for."""
    host = Host(2)
    assert host.take(0, 0) == 0
    assert host.take(1, 0) == 1
    assert host.take(1, 7) is None


def test_what_a_dead_worker_had_is_free() -> None:
    """It is gone with it."""
    host = Host(1)
    assert host.take(0, 7) == 0
    host.shares.die(0)
    assert host.take(1, 7) == 0


def test_one_kind_is_known_by_its_name() -> None:
    """Its server is asked whether it is well unless that is switched off."""
    probe = FEATURE.Config(name="l", kind="llama_cpp").probe()
    assert probe is not None
    assert probe.url == "http://localhost:8080/health"


def test_a_server_is_asked_for_its_slots_where_that_matters() -> None:
    """Even if it is asked nothing else; without its metrics nobody knows whose they are."""
    asked = {"name": "l", "kind": "llama_cpp", "base_url": "http://h:1/v1"}
    nothing = {"health": HealthCheck(enabled=False), "metrics_path": ""}
    for slots, more, url in (
        (0, {}, ""), (2, {}, "http://h:1/props"), ("auto", {}, "http://h:1/props"),
        (2, nothing, "http://h:1/props"),
    ):  # fmt: skip
        probe = FEATURE.Config(**asked, **more, slots=slots).probe()
        assert probe is not None
        assert probe.slots_url == url
        assert probe.held_url == ("http://h:1/slots" if slots == "auto" else "")
    assert FEATURE.Config(**asked, **nothing).probe() is None
    (where, why), *_ = FEATURE.Config(**asked, slots="auto", metrics_path="").problems()
    assert (where, "needs metrics_path" in why) == ("slots", True)
