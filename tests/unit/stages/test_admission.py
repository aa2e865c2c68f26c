"""Tries and their places: taken once, waited for, given back however a try ends."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
import pytest

from tests.support.fake_env import FakeWorld, make_call
from tests.support.fake_net import Collected, HeldStream
from tpo_mp.config import load
from tpo_mp.errors import BackendFailure, ConfigError, DeadlineExceeded, Shed
from tpo_mp.pipeline.places import TICK_S, desk_of
from tpo_mp.pipeline.promise import Promise
from tpo_mp.ports import BackendConfig
from tpo_mp.stages.admission import FEATURE, Config
from tpo_mp.types import Call, Reply


class Bench:
    """A stage before backend ``b``, whose replies a test gives."""

    def __init__(self, limit: int = 1, **options: Any) -> None:
        self.world = FakeWorld()
        self.room = self.world.rooms["inference"]
        self.stage = FEATURE.build(msgspec.convert(options, Config), self.world.env)
        self.stage.meet([BackendConfig(name="b", kind="echo", max_concurrent=limit)])
        self.tries: list[Promise[Reply]] = []
        self.asked: list[Call] = []
        self.error: Exception | None = None

    def proceed(self, call: Call) -> Promise[Reply]:
        """The backend."""
        if self.error is not None:
            raise self.error
        self.asked.append(call)
        self.tries.append(Promise())
        return self.tries[-1]

    def send(self, **facts: Any) -> Any:
        """One try; its outcome."""
        call = make_call(b"{}", **({"started_at": self.world.now} | facts))
        call.backend = "b"
        return self.stage(call, self.proceed)

    def wait(self, seconds: float) -> None:
        """Time passes, tick by tick."""
        end = self.world.now + seconds
        while self.world.now < end - 1e-9:
            self.world.advance(TICK_S)

    @property
    def used(self) -> int:
        """Places that calls hold."""
        return desk_of(self.world.env).door("b").used

    @property
    def waiting(self) -> int:
        """Calls in the waiting room."""
        return 1000 - self.room.places


def answer(body: bytes = b"{}") -> Reply:
    """A whole one."""
    return Reply(200, body)


def test_a_place_is_held_until_the_answer() -> None:
    """And the next call has it then."""
    bench = Bench()
    first, second = bench.send(), bench.send()
    assert (len(bench.tries), bench.used, bench.waiting) == (1, 1, 1)
    bench.tries[0].resolve(answer(b"1"))
    assert (first.value.body, first.value.headers) == (b"1", b"")
    assert (len(bench.tries), bench.used, bench.waiting) == (2, 1, 0)
    bench.tries[1].resolve(answer(b"2"))
    assert second.value.body == b"2"
    assert bench.used == 0


def test_who_waited_is_told_how_long() -> None:
    """In a header."""
    bench = Bench()
    bench.send()
    waits = bench.send()
    bench.wait(0.25)
    bench.tries[0].resolve(answer())
    bench.tries[1].resolve(answer())
    assert waits.value.headers == b"x-tpo-queue-ms: 250.0\r\n"


def test_a_stream_holds_its_place_to_its_end() -> None:
    """However that comes."""

    def whole(held: HeldStream, reply: Reply) -> None:
        held.end()

    def broken(held: HeldStream, reply: Reply) -> None:
        held.end(BackendFailure("broke off"))

    def left(held: HeldStream, reply: Reply) -> None:
        assert reply.stream is not None
        reply.stream.cancel()

    for end in (whole, broken, left):
        bench, held, sink = Bench(), HeldStream(), Collected()
        first, second = bench.send(stream=True), bench.send()
        reply = Reply(200, None, stream=held)
        bench.tries[0].resolve(reply)
        first.value.stream.attach(sink)
        held.data(b"x")
        assert (bench.used, bench.waiting, sink.text) == (1, 1, b"x")
        end(held, first.value)
        assert (bench.used, bench.waiting) == (1, 0), end.__name__
        assert not second.done


@pytest.mark.parametrize("how", ["rejects", "raises", "leaves"])
def test_a_try_that_fails_gives_its_place_back(how: str) -> None:
    """At once."""
    bench = Bench()
    if how == "raises":
        bench.error = BackendFailure("no connection")
        with pytest.raises(BackendFailure):
            bench.send()
    else:
        first = bench.send()
        if how == "rejects":
            bench.tries[0].reject(BackendFailure("broke"))
            assert isinstance(first.error, BackendFailure)
        else:
            first.cancel()
    assert bench.used == 0
    bench.error = None
    bench.send()
    assert bench.used == 1


def test_a_waiting_call_whose_try_raises_fails_and_gives_back() -> None:
    """Its turn came, and the backend could not be asked."""
    bench = Bench()
    bench.send()
    waits = bench.send()
    bench.error = BackendFailure("no connection")
    bench.tries[0].resolve(answer())
    assert isinstance(waits.error, BackendFailure)
    assert (bench.used, bench.waiting) == (0, 0)


def test_who_leaves_the_queue_frees_room_at_once() -> None:
    """And its backend is never asked."""
    bench = Bench()
    bench.send()
    waits = bench.send()
    waits.cancel()
    assert isinstance(waits.error, asyncio.CancelledError)
    assert bench.waiting == 0
    bench.tries[0].resolve(answer())
    assert (len(bench.tries), bench.used) == (1, 0)


def test_who_leaves_after_its_turn_is_cancelled_upstream() -> None:
    """The same way as one that never waited."""
    bench = Bench()
    bench.send()
    waits = bench.send()
    bench.tries[0].resolve(answer())
    waits.cancel()
    assert bench.tries[1].done
    assert bench.used == 0


def test_a_full_room_sheds() -> None:
    """With the reason that operators know, and a pause."""
    bench = Bench()
    bench.room.places = 2
    for _ in range(3):
        bench.send()
    with pytest.raises(Shed) as shed:
        bench.send()
    assert (shed.value.reason, shed.value.retry_after_s) == ("backpressure", 1.0)
    assert bench.room.places == 0


@pytest.mark.parametrize(
    ("facts", "options", "error", "reason"),
    [
        ({"deadline": 1000.3}, {}, DeadlineExceeded, "deadline_in_queue"),
        ({"patience_s": 0.3}, {}, Shed, "queue_timeout"),
        ({}, {"max_wait_s": 0.3}, Shed, "queue_timeout"),
    ],
)
def test_nobody_waits_longer_than_it_would(
    facts: Any, options: Any, error: Any, reason: str
) -> None:
    """Its own deadline, its SDK's silence limit, the configured wait."""
    bench = Bench(**options)
    bench.send()
    waits = bench.send(**facts)
    bench.wait(0.2)
    assert not waits.done
    bench.wait(0.2)
    assert isinstance(waits.error, error)
    assert waits.error.reason == reason
    assert b"x-tpo-queue-ms: " in waits.error.lines
    assert bench.waiting == 0


def test_one_that_would_wait_too_long_is_refused_at_once() -> None:
    """With a pause from the rate at which places came back."""
    bench = Bench()
    for _ in range(41):
        bench.send()
    for done in range(25):
        bench.wait(0.1)
        bench.tries[done].resolve(answer())
    assert bench.waiting == 15
    late = bench.send(deadline=bench.world.now + 1.0)
    assert isinstance(late.error, Shed)
    assert late.error.reason == "queue_too_long"
    assert 1.4 < (late.error.retry_after_s or 0) < 1.7
    assert bench.waiting == 15
    in_time = bench.send(deadline=bench.world.now + 2.0)
    assert not in_time.done


def test_priority_decides_who_is_next() -> None:
    """Whoever came first."""
    bench = Bench()
    for priority in (0, 1, 3, 2):
        bench.send(priority=priority)
    for done in range(3):
        bench.tries[done].resolve(answer())
    assert [call.priority for call in bench.asked] == [0, 3, 2, 1]


def test_a_tenant_has_no_higher_priority_than_it_may() -> None:
    """What it marks higher waits as that; what it marks lower stays low."""
    bench = Bench(highest={"trial": "normal"})
    bench.send()
    bench.send(tenant="trial", priority=0)
    bench.send(tenant="trial", priority=3)
    bench.send(tenant="paying", priority=2)
    bench.send(tenant="paying", priority=1)
    for done in range(4):
        bench.tries[done].resolve(answer())
    order = [(call.tenant, call.priority) for call in bench.asked[1:]]
    assert order == [("paying", 2), ("trial", 3), ("paying", 1), ("trial", 0)]


def test_weights_of_tenants() -> None:
    """Two places of one for each of the other."""
    bench = Bench(weights={"big": 2})
    bench.send()
    for _ in range(6):
        bench.send(tenant="small")
        bench.send(tenant="big")
    for done in range(6):
        bench.tries[done].resolve(answer())
    assert [call.tenant for call in bench.asked[1:]].count("big") == 4


def test_a_reload_keeps_the_places() -> None:
    """The next stage counts what runs under the last one."""
    bench = Bench()
    bench.send()
    stage = FEATURE.build(Config(), bench.world.env)
    stage.meet([BackendConfig(name="b", kind="echo", max_concurrent=2)])
    bench.stage = stage
    bench.send()
    bench.send()
    assert (bench.used, bench.waiting) == (2, 1)


def test_without_a_limit_nobody_waits() -> None:
    """Nor for a backend nobody told of."""
    bench = Bench(limit=0)
    for _ in range(100):
        bench.send()
    assert (len(bench.tries), bench.used, bench.waiting) == (100, 100, 0)
    call = make_call(b"{}")
    call.backend = "other"
    assert bench.stage(call, bench.proceed) is bench.tries[-1]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"max_wait_s": 0}, "stages.admission.max_wait_s = 0"),
        ({"aging_s": -1}, "stages.admission.aging_s = -1"),
        ({"weights": {"a": 0}}, "stages.admission.weights.a = 0"),
        ({"max_wait": 3}, "stages.admission.max_wait: unknown key; did you mean 'max_wait_s'?"),
    ],
)
def test_wrong_options_are_told_with_their_path(options: Any, said: str) -> None:
    """As every setting is."""
    with pytest.raises(ConfigError) as refused:
        load.build({"stages": {"admission": options}}, {}, {}, None)
    assert said in refused.value.message


def test_it_is_on_unless_it_is_left_out() -> None:
    """And stands inside of retries, so that a call that waits for one holds no place."""
    order = load.build({}, {}, {}, None).stage_order
    assert "admission" in order
    listed = {"pipeline": {"stages": ["rate_limit"]}}
    assert load.build(listed, {}, {}, None).stage_order == ("rate_limit",)
