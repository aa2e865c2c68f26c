"""Which engines run and when one is started again, with keepers that are not there."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest

from tpo_mp.config.engines import EngineSection
from tpo_mp.supervisor.engine_docks import NO_TICKET, EngineDocks, Ticket
from tpo_mp.supervisor.engine_keeper import ENDED, REFUSED
from tpo_mp.supervisor.engines import EngineBerth, EngineHouse
from tpo_mp.supervisor.events import EventLog
from tpo_mp.supervisor.intensity import RestartLimits

LIMITS = RestartLimits(deaths=2, window_s=10.0, backoff_min_s=1.0, backoff_max_s=8.0)


class FakeKeeper:
    """A keeper that ends when the test says so, with what it last said."""

    pid = 1

    def __init__(self, state_fd: int) -> None:
        self._said_fd = os.dup(state_fd)
        self.status: int | None = None

    def say(self, **told: Any) -> None:
        """Write a line to the supervisor."""
        os.write(self._said_fd, json.dumps(told).encode() + b"\n")

    def end(self, status: int, words: str = "") -> None:
        """End with this exit code."""
        self.say(words=words)
        os.close(self._said_fd)
        self.status = status

    def poll(self) -> int | None:
        """The exit code, once it ended."""
        return self.status


class NoDocks:
    """No engine has a place in shared memory."""

    def take(self, name: str) -> Ticket:
        """There is none."""
        return NO_TICKET

    def leave(self, ticket: Ticket) -> None:
        """None was taken."""
        assert not ticket


class House(EngineHouse):
    """Engines whose keepers are fakes."""

    __slots__ = ("keepers",)
    keepers: list[FakeKeeper]

    def _spawn(self, berth: EngineBerth, wanted: EngineSection, state_fd: int, life_fd: int) -> Any:
        keeper = FakeKeeper(state_fd)
        self.keepers.append(keeper)
        return keeper

    def one(self, now: float, **options: Any) -> None:
        """Want one engine, and take a turn."""
        self.adopt([EngineSection(name="e", **options)], self.limits)
        self.turn(now)

    @property
    def state(self) -> str:
        """How it is."""
        return self.berths["e"].state


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    """No engine yet."""
    made = House(tmp_path, EventLog(stream=io.StringIO()), LIMITS, cast("EngineDocks", NoDocks()))
    made.keepers = []
    yield made
    for keeper in made.keepers:
        if keeper.status is None:
            keeper.end(0)
    for berth in made.berths.values():
        made._let_go(berth)


def last(house: House) -> FakeKeeper:
    """The keeper that was started last."""
    return house.keepers[-1]


def test_an_engine_that_died_is_started_again_and_then_backs_off(house: House) -> None:
    """At once for the first deaths, after a pause that grows for more."""
    house.one(0.0)
    for death in range(3):
        assert house.state == "loading"
        last(house).say(state="ready")
        house.turn(death + 0.1)
        assert house.state == "ready"
        last(house).end(ENDED, "SIGSEGV")
        house.turn(death + 0.2)
        house.turn(death + 0.4)
    assert (house.state, len(house.keepers)) == ("backing off", 3)
    house.turn(3.1)
    assert len(house.keepers) == 3
    house.turn(3.3)
    assert (house.state, len(house.keepers), house.berths["e"].restarts) == ("loading", 4, 3)


@pytest.mark.parametrize(
    ("restart", "words", "again"),
    [
        ("always", "exit code 0", True),
        ("always", "exit code 3", True),
        ("on_failure", "exit code 0", False),
        ("on_failure", "exit code 3", True),
        ("on_failure", "SIGKILL", True),
        ("never", "exit code 3", False),
    ],
)
def test_restart_says_which_end_is_the_last(
    house: House, restart: str, words: str, again: bool
) -> None:
    """What ended for good is failed until its settings change."""
    house.one(0.0, restart=restart)
    last(house).end(ENDED, words)
    house.turn(0.1)
    house.turn(5.0)
    assert (len(house.keepers) == 2) is again
    assert house.state == ("loading" if again else "failed")
    house.one(6.0, restart=restart, cores=3)
    house.turn(6.2)
    assert again or len(house.keepers) == 2


def test_one_that_cannot_start_waits_at_once_whatever_restart_says(house: House) -> None:
    """What is wrong with it may be put right."""
    house.one(0.0, restart="never")
    last(house).end(REFUSED, "port 1 is taken")
    house.turn(0.1)
    assert (house.state, house.berths["e"].words) == ("backing off", "port 1 is taken")
    house.turn(1.2)
    assert len(house.keepers) == 2


def test_a_keeper_that_dies_is_told_as_such(house: House) -> None:
    """Its engine is ended with it and started again."""
    house.one(0.0)
    last(house).end(-9)
    house.turn(0.1)
    assert house.berths["e"].words == "its keeper ended with -9"
    house.turn(0.3)
    assert len(house.keepers) == 2


def test_cores_of_engines_that_are_gone_are_for_those_that_come(house: House) -> None:
    """Asked for when one starts that has none, beside those that still run."""
    asked: list[dict[str, tuple[int, ...]]] = []

    def more(engine: EngineSection, others: Any) -> tuple[int, ...]:
        asked.append({name: cpus for name, cpus in others.items() if name != engine.name})
        return (7,)

    house.cpus = {"e": (1,), "gone": (2,)}
    house.more_cpus = more
    house.one(0.0)
    house.adopt([EngineSection(name="e"), EngineSection(name="late")], LIMITS)
    house.turn(0.1)
    assert [berth.cpus for berth in house.berths.values()] == [(1,), (7,)]
    assert asked == [{"e": (1,)}]
