"""From a request to its engine: refusals, order, salt, and thoughts that nobody sees."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from tests.support.fake_codec import request_of
from tests.support.fake_env import FakeWorld, make_call
from tpo_mp.dialects.canonical import ModelReply, ReplyChoice, TextBlock
from tpo_mp.errors import InvalidRequest
from tpo_mp.simulator.engine_options import EngineOptions
from tpo_mp.simulator.engine_timing import Engines
from tpo_mp.simulator.live import change
from tpo_mp.simulator.provider import Answered
from tpo_mp.simulator.sleeping import fallen_asleep
from tpo_mp.simulator.timer import timer_of
from tpo_mp.simulator.timing import EVERYTHING, Asked
from tpo_mp.types import Priority, Usage

LONG = "Tell me about the rivers of the north and all the bridges that cross them, please."


class Bench:
    """One engine and what was released and refused."""

    def __init__(self, **options: Any) -> None:
        self.world = FakeWorld()
        limits = {"max_num_seqs": 1, "max_waiting": 2, "block_size": 4, "num_gpu_blocks": 64,
                  "max_model_len": 200, "base_ms": 10} | options  # fmt: skip
        own = {"tiny": EngineOptions(**limits)}
        engines = Engines("sim", own, self.world.env, timer_of(self.world.env))
        self.timing = engines.offer["tiny"]()
        self.order: list[str] = []
        self.released: dict[str, int] = {}
        self.refused: list[int] = []
        self.broken: list[tuple[int, int]] = []

    def ask(
        self, name: str = "a", *, prompt: str = "hi", tokens: int = 3, hidden: int = 0,
        tenant: str = "", urgency: Priority = Priority.NORMAL, **fields: Any,
    ) -> Answered:  # fmt: skip
        """Begin one request."""
        body = {"model": "m", "messages": [{"role": "user", "content": prompt}], **fields}
        request = request_of(body)
        reply = ModelReply(id="r", model="m", choices=(ReplyChoice((TextBlock("x"),)),))
        answered = Answered(Usage(30, tokens), "stop", bytes, lambda _w, _s: iter(()),
                            requests=[request], reply=reply)  # fmt: skip
        call = make_call(b"", tenant=tenant, priority=urgency)
        pace = self.timing.pace(
            Asked(
                call, b"", self.world.now, 30, tokens, hidden, 1.0, answered, self.refused.append,
                lambda shown, spent: self.broken.append((shown, spent)),
            )
        )  # fmt: skip

        def release(n: int) -> None:
            if name not in self.released:
                self.order.append(name)
            self.released[name] = self.released.get(name, 0) + n

        pace.begin(release)
        return answered

    def run(self, seconds: float = 0.5) -> None:
        """Let time pass."""
        for _ in range(round(seconds / 0.01)):
            self.world.advance(0.01)


def test_thoughts_take_their_time_but_are_not_released() -> None:
    """And the last token lets everything go."""
    bench = Bench()
    bench.ask(tokens=2, hidden=3)
    bench.run(0.03)
    assert bench.released == {}
    bench.run(0.01)
    assert bench.released == {"a": 1}
    bench.run(0.02)
    assert bench.released["a"] > EVERYTHING


def test_what_its_engine_breaks_off_ends_behind_what_it_released() -> None:
    """Thoughts are counted and not shown; nothing is refused, and nothing comes later."""
    bench = Bench(max_num_seqs=2)
    bench.ask("a", tokens=30, hidden=3)
    bench.ask("b", tokens=30)
    bench.ask("waits")
    bench.run(0.05)
    assert bench.released == {"a": 2, "b": 4}
    live = bench.world.env.live
    asyncio.run(change(live, lambda state: fallen_asleep(state, 1, "abort")))
    bench.run()
    assert bench.broken == [(3, 6), (5, 5), (0, 0)]
    assert bench.released == {"a": 3, "b": 5}
    assert bench.refused == []


def test_full_queue_answers_with_the_configured_status() -> None:
    """And nothing of it stays."""
    bench = Bench(full_status=429)
    for name in "abcd":
        bench.ask(name)
    bench.run()
    assert bench.refused == [429]
    assert bench.order == ["a", "b", "c"]


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"max_tokens": 171}, "max_tokens"),
        ({"priority": 1}, "priority"),
        ({"priority": "high"}, "priority"),
        ({"cache_salt": ""}, "cache_salt"),
    ],
)
def test_what_an_engine_cannot_do_is_refused_by_field(fields: dict[str, Any], param: str) -> None:
    """At once, as the server does."""
    bench = Bench()
    with pytest.raises(InvalidRequest) as told:
        bench.ask(**fields)
    assert told.value.param == param
    bench.ask(max_tokens=170)


def test_priority_orders_those_who_wait() -> None:
    """The body's own, lower first; without one the call's class."""
    bench = Bench(scheduling_policy="priority", max_waiting=9)
    bench.ask("first")
    bench.ask("low", urgency=Priority.LOW)
    bench.ask("normal")
    bench.ask("urgent", urgency=Priority.CRITICAL)
    bench.ask("said", priority=-9)
    bench.run()
    assert bench.order == ["first", "said", "urgent", "normal", "low"]


def test_equal_beginnings_are_cached_for_those_who_share_a_salt() -> None:
    """Not across tenants, and not across salts of one tenant."""
    bench = Bench()
    seen = []
    for more in ({}, {}, {"tenant": "b"}, {"cache_salt": "s"}, {"tenant": "b"}):
        answered = bench.ask(prompt=LONG, **more)
        bench.run(0.1)
        seen.append(answered.cached.tokens)
    assert [cached > 0 for cached in seen] == [False, True, False, False, True]


def test_stopped_request_makes_room_for_the_next() -> None:
    """A client that leaves."""
    bench = Bench(max_waiting=1)
    pace = bench.timing.pace(
        Asked(make_call(b""), b"", bench.world.now, 5, 150, 0, 1.0,
              Answered(Usage(5, 150), "stop", bytes, lambda _w, _s: iter(()),
                       requests=[request_of({"model": "m", "messages": [
                           {"role": "user", "content": "hi"}]})]))
    )  # fmt: skip
    pace.begin(lambda _: None)
    bench.run(0.05)
    bench.ask("next")
    bench.run(0.1)
    assert bench.order == []
    pace.stop()
    bench.run(0.1)
    assert bench.order == ["next"]
