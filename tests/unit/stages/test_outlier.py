"""Ejections as two processes of a host see them; one judges, both obey."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field, replace
from typing import Any

from tests.support.fake_env import FakeWorld, make_call
from tpo_mp.ports import BackendConfig
from tpo_mp.stages.outlier import Config, Outlier

OPTIONS = Config(interval_s=10, min_tries=10, eject_s=30)


@dataclass
class Entry:
    """A route of a config."""

    backends: list[str] = field(default_factory=lambda: ["a", "b", "c"])


class Host:
    """Two processes with the same config."""

    def __init__(self, *routes: Entry, **options: Any) -> None:
        self.world = FakeWorld()
        entries = [BackendConfig(name=n, kind="echo", models=("m",)) for n in "abcd"]
        config = replace_options(options)
        self.stages = []
        for seat in (0, 1):
            env = replace(self.world.env, scores=self.world.scores.seat(seat))
            stage = Outlier(config, env)
            stage.meet(entries)
            stage.meet_routes(routes or (Entry(),))
            self.stages.append(stage)

    def tries(self, seat: int, name: str, good: int, bad: int = 0) -> None:
        """What a process saw."""
        score = self.world.scores.seat(seat).of(f"{name}:m")
        assert score is not None
        for _ in range(good):
            score.good(0.1, self.world.now)
        for _ in range(bad):
            score.bad("upstream_error", self.world.now)

    def judge(self, *seats: int) -> None:
        """An interval is over for these processes."""
        for seat in seats or (0, 1):
            self.stages[seat].judge(self.stages[seat].totals(), self.world.now)

    def interval(self, **bad: int) -> None:
        """Forty tries of each, so many of them failures, half on each process."""
        for name in "abc":
            failures = bad.get(name, 0)
            for seat in (0, 1):
                self.tries(seat, name, (40 - failures) // 2, failures // 2)
        self.world.now += 10
        self.judge()

    def out(self) -> list[str]:
        """Who is left out, as both processes say."""
        call = make_call(b"{}", model="m")

        async def look() -> list[list[str]]:
            return [[n for n in "abcd" if stage.blocked(call, n)] for stage in self.stages]

        one, two = asyncio.run(look())
        assert one == two
        return one


def replace_options(options: dict[str, Any]) -> Config:
    """The tests' options but these."""
    fields = {name: getattr(OPTIONS, name) for name in OPTIONS.__struct_fields__}
    return Config(**(fields | options))


def test_what_all_saw_leaves_one_out_for_all() -> None:
    """Half of the bad ones' tries on each process, below what one alone would judge."""
    host = Host(min_tries=25)
    host.interval()
    assert host.out() == []
    host.interval(b=20)
    assert host.out() == ["b"]
    host.world.now += 34
    assert host.out() == []


def test_it_is_judged_once_per_interval() -> None:
    """Two processes that both come to it take one time back, not two."""
    host = Host()
    host.interval()
    for _ in range(2):
        host.interval(b=40)
        host.world.now += 70
        assert host.out() == []  # which looks at the scores too
    host.interval()  # of two times one is left
    host.interval(b=40)
    host.world.now += 50
    assert host.out() == ["b"]
    host.world.now += 17
    assert host.out() == []


def test_growing_and_forgiving() -> None:
    """Ejected again at once it is out for twice as long; each good interval takes one time back."""
    host = Host()
    host.interval()
    host.interval(a=40)
    host.world.now += 40
    host.interval()  # numbers of too long ago are not judged, this begins anew
    host.interval(a=40)
    host.world.now += 50
    assert host.out() == ["a"]
    host.world.now += 20
    host.interval()
    for _ in range(3):
        host.interval()
    assert host.out() == []
    host.interval(a=40)
    host.world.now += 34
    assert host.out() == []


def test_all_bad_leaves_all_in_and_one_always_stays() -> None:
    """Whoever is like the others does not stand out."""
    host = Host(max_share=1.0)
    host.interval()
    host.interval(a=40, b=40, c=40)
    assert host.out() == []
    host.interval(a=40, b=40)
    assert len(host.out()) == 2
    host.interval(c=40)
    assert len(host.out()) == 2


def test_one_that_shares_no_route_is_not_judged() -> None:
    """Alone on its route, or on none."""
    host = Host(Entry(["a"]))
    host.interval()
    host.interval(a=40)
    assert host.out() == []


def test_a_process_that_judges_dies_and_the_other_goes_on() -> None:
    """Nobody is needed for it."""
    host = Host()
    host.interval()
    for name, good, bad in (("a", 40, 0), ("b", 0, 40), ("c", 40, 0)):
        host.tries(0, name, good, bad)
    host.world.now += 10
    host.judge(1)
    assert host.out() == ["b"]
