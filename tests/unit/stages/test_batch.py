"""Calls that come together are sent together, whichever worker they came to."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from random import Random
from typing import Any

import msgspec
import pytest

from tests.support.fake_env import FakeShares, FakeWorld, make_call
from tests.support.fake_peers import FakeWire
from tpo_mp.errors import BackendFailure, ConfigError
from tpo_mp.pipeline import grouping
from tpo_mp.pipeline.promise import Promise
from tpo_mp.ports import BackendConfig
from tpo_mp.stages.batch import MOST_GROUPS, Batch, Config
from tpo_mp.types import Call, Reply


def words(call: Call) -> str:
    """What a call asks."""
    return str(json.loads(call.body)["messages"][0]["content"])


class Clock:
    """Timers that go off when the test says."""

    def __init__(self) -> None:
        self.due: list[Clocked] = []

    def later(self, seconds: float, do: Callable[[], object]) -> Clocked:
        """Set one."""
        self.due.append(Clocked(do))
        return self.due[-1]

    def strike(self) -> None:
        """The time of all that are set is up."""
        due, self.due = self.due, []
        for one in due:
            if not one.off:
                one.do()


class Clocked:
    """One timer."""

    def __init__(self, do: Callable[[], object]) -> None:
        self.do = do
        self.off = False

    def cancel(self) -> None:
        """It shall not go off."""
        self.off = True


class Host:
    """Two workers in front of one backend, which answers when the test says."""

    def __init__(self, **options: Any) -> None:
        self.wire = FakeWire(2)
        self.clocks = (Clock(), Clock())
        self.sent: list[Call] = []
        self.answers: dict[int, Promise[Reply]] = {}
        self.left = 0
        world, shares = FakeWorld(), FakeShares()
        config = msgspec.convert({"eager": False} | options, Config)
        self.stages = [
            Batch(
                config,
                replace(world.env, peers=self.wire.peers(seat), shares=shares.other(seat)),
                self.clocks[seat].later,
            )
            for seat in range(2)
        ]

    def send(
        self, text: str, seat: int = 0, backend: str = "b", model: str = "m"
    ) -> Promise[Reply]:
        """One call; its outcome."""
        messages = [{"role": "user", "content": text}]
        call = make_call(json.dumps({"messages": messages}).encode(), model=model)
        call.backend = backend
        out: Any = self.stages[seat](call, self._backend)
        self.wire.pump()
        return out  # type: ignore[no-any-return]

    def _backend(self, call: Call) -> Promise[Reply]:
        self.sent.append(call)
        out = self.answers[id(call)] = Promise[Reply](self._leave)
        return out

    def _leave(self) -> None:
        self.left += 1

    def answer(self, call: Call) -> None:
        """The backend answers one."""
        self.answers.pop(id(call)).resolve(Reply(200, call.body))

    @property
    def texts(self) -> list[str]:
        """What was sent, in order."""
        return [words(call) for call in self.sent]


def test_a_full_group_goes_at_once_in_its_order() -> None:
    """And each call gets its own answer."""
    host = Host(max_batch_size=3)
    outs = [host.send(text) for text in ("one", "two")]
    assert host.sent == []
    outs.append(host.send("three"))
    assert host.texts == ["one", "two", "three"]
    for call in reversed(host.sent):
        host.answer(call)
    assert [out.value.body for out in outs if out.value] == [call.body for call in host.sent]


def test_calls_that_begin_alike_go_in_a_row() -> None:
    """Another beginning waits for its own."""
    host = Host(max_batch_size=2, group_by_prefix_len=8)
    host.send("lawyer: a")
    host.send("doctor: b")
    host.send("lawyer: c")
    assert host.texts == ["lawyer: a", "lawyer: c"]
    host.send("doctor: d")
    assert host.texts[2:] == ["doctor: b", "doctor: d"]


@pytest.mark.parametrize("other", [{"backend": "c"}, {"model": "n"}])
def test_backends_and_models_are_collected_apart(other: dict[str, str]) -> None:
    """They share no memory."""
    host = Host(max_batch_size=2)
    host.send("one")
    host.send("two", **other)
    assert host.sent == []
    host.send("three")
    assert host.texts == ["one", "three"]


def test_who_waited_long_enough_goes() -> None:
    """However few they are."""
    host = Host()
    host.send("one")
    host.send("two")
    host.clocks[0].strike()
    assert host.texts == ["one", "two"]
    assert len(host.stages[0]._grouping) == 0
    host.clocks[0].strike()
    assert len(host.sent) == 2


def test_workers_fill_a_group_together() -> None:
    """Those of both go when all of them are enough."""
    host = Host(max_batch_size=4)
    for seat in (0, 1, 1):
        host.send(f"to {seat}", seat)
    assert host.sent == []
    host.send("the last", 1)
    assert sorted(host.texts) == ["the last", "to 0", "to 1", "to 1"]


def test_those_of_a_dead_worker_are_not_counted() -> None:
    """They do not wait any more."""
    host = Host(max_batch_size=3)
    host.send("dies", 1)
    host.send("one", 0)
    host.wire.die(1, home=0)
    host.send("two", 0)
    assert host.sent == []
    host.send("three", 0)
    assert host.texts == ["one", "two", "three"]


def test_another_home_hears_of_all_that_wait() -> None:
    """With the next that comes."""
    host = Host(max_batch_size=3)
    host.send("one", 1)
    host.send("two", 1)
    host.wire.die(0, home=1)
    host.send("three", 1)
    assert host.texts == ["one", "two", "three"]


def test_the_first_ones_time_counts_for_all() -> None:
    """The home's clock sends what waits elsewhere, too."""
    host = Host(max_batch_size=4)
    host.send("one", 0)
    host.send("two", 1)
    host.clocks[0].strike()
    host.wire.pump()
    assert host.texts == ["one", "two"]


@pytest.mark.parametrize("fault", ["full", "dead"])
def test_a_home_that_hears_nothing_costs_no_call(fault: str) -> None:
    """Each worker has its own clock."""
    host = Host(max_batch_size=2)
    if fault == "full":
        host.wire.full = True
    else:
        host.wire.listeners[0].clear()
    host.send("one", 1)
    host.send("two", 1)
    assert host.sent == []
    host.clocks[1].strike()
    assert host.texts == ["one", "two"]


def test_who_left_is_neither_sent_nor_counted() -> None:
    """A group is as full as calls wait."""
    host = Host(max_batch_size=2)
    host.send("gone", 1).cancel()
    host.wire.pump()
    assert len(host.stages[0]._grouping) == 0
    host.send("one", 1)
    assert host.sent == []
    host.send("two", 1)
    assert host.texts == ["one", "two"]


def test_a_call_that_leaves_while_its_group_goes_is_not_sent() -> None:
    """What becomes of one call may make another leave."""
    host = Host(max_batch_size=3)
    first = make_call(b"{}", model="m")
    first.backend = "b"

    def fails(_asked: Call) -> Promise[Reply]:
        second.cancel()
        raise BackendFailure("refused")

    out: Any = host.stages[0](first, fails)
    second = host.send("two")
    host.send("three")
    assert isinstance(out.error, BackendFailure)
    assert host.texts == ["three"]


def test_the_backends_work_is_left_with_its_call() -> None:
    """Once it was sent, a call is cancelled where it is."""
    host = Host(max_batch_size=1)
    out = host.send("one")
    assert len(host.sent) == 1
    out.cancel()
    assert host.left == 1
    assert host.stages[0]._load("b").total() == 0


def test_nobody_waits_for_an_idle_backend() -> None:
    """And others do while it works, in either worker, until it is done."""
    host = Host(max_batch_size=8, eager=True)
    host.send("one", 0)
    assert host.texts == ["one"]
    host.send("two", 1)
    host.send("three", 0)
    assert host.texts == ["one"]
    host.answer(host.sent[0])
    host.send("with three", 0)
    assert host.texts == ["one"]
    host.send("other", 0, model="n")
    assert host.texts == ["one", "other"]


def test_only_the_named_backends_are_collected() -> None:
    """Others are asked as ever."""
    host = Host(backends=["b"])
    host.send("one", backend="c")
    assert host.texts == ["one"]
    host.send("two", backend="b")
    assert host.texts == ["one"]


def test_groups_are_bounded() -> None:
    """Beyond the cap calls go at once."""
    host = Host()
    for n in range(MOST_GROUPS):
        host.send("waits", model=f"m{n}")
    assert host.sent == []
    host.send("goes", model="one more")
    assert host.texts == ["goes"]


def test_counted_groups_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is not counted goes by its time."""
    monkeypatch.setattr(grouping, "MOST", 1)
    host = Host(max_batch_size=2)
    host.send("counted")
    host.send("not", model="n")
    host.send("not either", model="n")
    assert host.sent == []
    host.clocks[0].strike()
    assert sorted(host.texts) == ["counted", "not", "not either"]


def test_every_call_is_sent_once_whatever_happens() -> None:
    """Random comings, goings, losses and deaths on two workers."""
    seed = Random().randrange(1 << 32)
    random = Random(seed)
    host = Host(max_batch_size=3, group_by_prefix_len=6)
    expected, waiting, seen = set(), {}, 0
    for n in range(2000):
        text = f"{random.choice('ab')}: {n}"
        waiting[text] = host.send(text, random.randrange(2))
        expected.add(text)
        for call in host.sent[seen:]:
            waiting.pop(words(call), None)
        seen = len(host.sent)
        chance = random.random()
        if chance < 0.1 and waiting:
            left = random.choice(sorted(waiting))
            waiting.pop(left).cancel()
            expected.discard(left)
        elif chance < 0.15:
            host.wire.lose = random.randrange(3)
        elif chance < 0.2:
            host.clocks[random.randrange(2)].strike()
        elif chance < 0.22:
            host.wire.default_home = random.randrange(2)
        host.wire.pump()
        for call in host.sent[seen:]:
            waiting.pop(words(call), None)
        seen = len(host.sent)
    for clock in host.clocks:
        clock.strike()
    assert sorted(host.texts) == sorted(expected), f"seed {seed}"
    assert not any(stage._groups for stage in host.stages), f"seed {seed}"


def test_a_config_that_was_refused_leaves_the_running_one_its_messages() -> None:
    """Its stages were made, and heard in the place of those that run, but are never used."""
    host = Host(max_batch_size=2)
    for stage in host.stages:
        Batch(Config(max_batch_size=9), stage._env, Clock().later)
    for seat in range(2):
        host.send(f"round {seat}: one", seat)
        host.send(f"round {seat}: two", 1 - seat)
    assert len(host.sent) == 4


def test_names_that_a_host_cannot_know_refuse_the_config() -> None:
    """And no call, later."""

    class Full(FakeShares):
        def of(self, name: str) -> Any:
            raise ConfigError(f"no line for {name}")

    stage = Batch(Config(backends=("b",)), replace(FakeWorld().env, shares=Full()))
    stage.meet([BackendConfig(name="a", kind="echo")])
    with pytest.raises(ConfigError, match="no line"):
        stage.meet([BackendConfig(name="b", kind="echo")])
