"""Rules, scenario and own orders together, as a request meets them."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Any

import msgspec
import pytest

from tests.support.fake_env import FakeLedger, FakeWorld, make_call
from tests.support.fake_net import Collected
from tpo_mp.errors import BackendFailure, InvalidRequest
from tpo_mp.simulator.fault_rules import FaultRule
from tpo_mp.simulator.live import ActiveScenario, LiveState
from tpo_mp.simulator.orders import NOTHING, ErrorOrder, FaultOrder, Orders
from tpo_mp.simulator.scenarios import Scenario
from tpo_mp.simulator.troubles import RequestFacts, Troubles, problems_of, since
from tpo_mp.types import Call, Reply, Sink


def troubles(world: FakeWorld, faults: list[dict[str, Any]] | None = None, **more: Any) -> Troubles:
    """What a configuration says."""
    made = msgspec.convert(faults or [], tuple[FaultRule, ...])
    scenarios = msgspec.convert(more.pop("scenarios", {}), dict[str, Scenario])
    return Troubles(world.env, lambda _call: None, faults=made, scenarios=scenarios, **more)


def met(made: Troubles, orders: Orders = NOTHING, drawn: bytes = b"k", **call: Any) -> Orders:
    """What a request meets."""
    return made.meet(make_call(b"{}", **call), orders, lambda _call, _orders: drawn)


def test_nothing_configured_is_quiet() -> None:
    """No request need ask."""
    assert troubles(FakeWorld()).quiet
    assert not troubles(FakeWorld(), [{"error": "429"}]).quiet
    assert not troubles(FakeWorld(), scenario="full_outage").quiet


def test_own_orders_come_first_and_are_not_counted() -> None:
    """The first request that asks for nothing is the first."""
    made = troubles(FakeWorld(), [{"error": "503", "sequence": {"first": 1}}])
    own = Orders(fault=FaultOrder("split"))
    assert met(made, own) is own
    assert met(made).error == ErrorOrder(503)
    assert met(made) is NOTHING


def test_scenario_comes_before_rules_and_delays_add_up() -> None:
    """The key that was ordered is kept."""
    made = troubles(
        FakeWorld(), [{"error": "503", "delay_ms": 10}],
        scenario="x", scenarios={"x": {"steps": [{"lasts_s": 5, "delay_ms": 100}]}},
    )  # fmt: skip
    seen = met(made, Orders(key="word"))
    assert (seen.error, seen.key) == (ErrorOrder(503), "word")
    assert seen.delay_s == pytest.approx(0.11)


def test_chance_keeps_its_key_for_the_answer() -> None:
    """It is worth making once."""
    made = troubles(FakeWorld(), [{"error": "503", "probability": 1e-9}])
    assert met(made, drawn=b"costly") == Orders(drawn=b"costly")
    sure = troubles(FakeWorld(), [{"error": "503"}])
    assert met(sure, drawn=b"costly").drawn == b""


def test_processes_learn_when_it_began_from_the_first() -> None:
    """A worker that starts later is at the same place of the timeline."""
    early, late = FakeWorld(), FakeWorld()
    ledger = early.env.ledger
    table = {"x": {"steps": [{"start_s": 10, "faults": [{"error": "503"}]}]}}
    first = troubles(early, scenario="x", scenarios=table)
    object.__setattr__(late.env, "ledger", ledger)
    late.advance(8)
    second = troubles(late, scenario="x", scenarios=table)
    for world in (early, late):
        world.now = 1009.9
    assert (met(first), met(second)) == (NOTHING, NOTHING)
    for world in (early, late):
        world.now = 1010.0
    assert met(first).error == met(second).error == ErrorOrder(503)
    assert second.status() == first.status()


def test_two_backends_of_a_host_begin_and_count_apart() -> None:
    """A worker that comes later, and builds both anew, moves neither's beginning."""
    world = FakeWorld()
    table = {name: {"steps": [{"start_s": 10, "faults": [{"error": "503"}]}]} for name in "xy"}

    def built() -> tuple[Troubles, Troubles]:
        one = troubles(world, [{"error": "429", "limit": 2}], scenario="x", scenarios=table,
                       owner="one")  # fmt: skip
        two = troubles(world, [{"error": "500", "limit": 2}], scenario="y", scenarios=table,
                       owner="two")  # fmt: skip
        return one, two

    first = built()
    told = [met(made).error for made in (*first, *first, *first)]
    assert told == [ErrorOrder(429), ErrorOrder(500)] * 2 + [None, None]
    world.advance(10)
    later = built()
    assert [met(made).error for made in later] == [ErrorOrder(503)] * 2
    assert [made.status() for made in later] == [made.status() for made in first]


def test_another_text_begins_again() -> None:
    """The same text goes on; numbers tell the texts apart."""
    ledger = FakeLedger()
    assert since(ledger, "x", b"a", 5.0) == (5.0, 1)
    assert since(ledger, "x", b"a", 6.0) == (5.0, 1)
    assert since(ledger, "x", b"b", 7.0) == (7.0, 2)
    assert since(ledger, "x", b"a", 8.0) == (8.0, 3)


def test_scenarios_are_switched_while_it_runs() -> None:
    """On, over, off; each activation counts anew, and all processes begin when it was told."""
    world = FakeWorld()
    table = {"x": {"faults": [{"error": "503", "limit": 1}]}}

    def told(name: str | None, epoch: int = 0, **more: Any) -> Troubles:
        active = None if name is None else ActiveScenario(name=name, began_at=990.0, epoch=epoch)
        state = LiveState(scenario=active, **more)
        return troubles(world, scenario="full_outage", scenarios=table, state=state)

    for epoch in (1, 2):
        assert [met(told("x", epoch)).error is not None for _ in range(2)] == [True, False]
    status = told("x", 2).status()
    assert status is not None
    assert (status["name"], status["elapsed_s"]) == ("x", 10.0)
    assert told(None).quiet
    assert told(None).status() is None
    assert told("x", 3, chaos=False).quiet
    assert told("gone", 3).quiet
    assert troubles(world, scenario="full_outage").status() is not None


def test_chaos_off_silences_rules_too() -> None:
    """But not a request's own orders."""
    made = troubles(FakeWorld(), [{"error": "503"}], state=LiveState(chaos=False))
    assert made.quiet
    assert met(made) is NOTHING


def test_context_errors_name_the_prompts_tokens() -> None:
    """So that the message can."""
    from tpo_mp.pipeline.codecs import codec
    from tpo_mp.simulator.readings import reading

    world = FakeWorld()
    rule = FaultRule(error="context_length_exceeded")
    made = Troubles(world.env, lambda c: reading(codec(c.dialect), c), faults=(rule,))
    body = b'{"model": "m", "messages": [{"role": "user", "content": "big rivers"}]}'
    seen = made.meet(make_call(body), NOTHING, lambda _call, _orders: b"")
    assert seen.error == ErrorOrder(400, None, "context_length_exceeded", 9)


def test_facts_are_found_in_the_call() -> None:
    """Headers by name, the client's credential, its tries; a body nobody can read says nothing."""

    def unreadable(_call: Call) -> None:
        raise InvalidRequest("no")

    forward = b"x-team: a\r\nx-stainless-retry-count: 2\r\n"
    call = make_call(b"x", forward=forward, authorization=b"Bearer sk-1")
    facts = RequestFacts(call, unreadable, lambda: b"", None)
    assert [facts.header(name) for name in ("x-team", "x-other", "authorization", "x-api-key")] == [
        "a", None, "Bearer sk-1", "sk-1",
    ]  # fmt: skip
    assert (facts.tries(), facts.text(), facts.tokens(), facts.concurrent()) == (2, "", 0, 0)


def test_headers_that_rules_ask_about_are_carried() -> None:
    """Those of scenarios too; what every call has need not be."""
    faults = [{"error": "429", "when": {"header": {"X-Team": "a", "authorization": "b"}}}]
    when = {"any": [{"header": {"X-Tier": "a", "X-Sim-Key": "b"}}]}
    table = {"x": {"steps": [{"faults": [{"error": "429", "when": when}]}]}}
    made = troubles(FakeWorld(), faults, scenarios=table)
    assert made.carried == {b"x-team", b"x-tier"}


@pytest.mark.parametrize(
    ("scenario", "own", "where", "said"),
    [
        ("ful_outage", {}, "scenario", "did you mean 'full_outage'?"),
        ("", {"a": {"include": ["b"]}, "b": {"include": ["a"]}}, "scenarios.b.include", "circle"),
        ("", {"a": {"include": ["nowhere"]}}, "scenarios.a.include", "is no scenario"),
    ],
)
def test_scenarios_that_cannot_be_are_told(
    scenario: str, own: dict[str, Any], where: str, said: str
) -> None:
    """Place and reason."""
    ((place, reason),) = problems_of(scenario, msgspec.convert(own, dict[str, Scenario]))
    assert place == where
    assert said in reason


def test_scenarios_that_can_be_have_no_problem() -> None:
    """Own ones may include those that ship, and have their names."""
    own = msgspec.convert({"a": {"include": ["high_latency"]}, "none": {}}, dict[str, Scenario])
    assert list(problems_of("a", own)) == []


@dataclass
class Told:
    """A stream that a test ends."""

    sink: list[Sink] = field(default_factory=list)

    def attach(self, sink: Sink) -> None:
        """Keep it."""
        self.sink.append(sink)

    def pause(self) -> None:
        """Nothing to hold."""

    def resume(self) -> None:
        """Nothing to let go."""

    def cancel(self) -> None:
        """Nothing runs."""


def test_calls_count_until_their_last_byte() -> None:
    """Whole, refused, streamed to the end, or given up."""

    async def story() -> None:
        made = troubles(FakeWorld(), [{"error": "503", "load": {"over": 1}}])
        assert made.counts_calls
        seen: list[int] = []

        async def answer(call: Call) -> Reply:
            seen.append(made._under_way.total())
            if call.model == "bad":
                raise BackendFailure("no")
            return Reply(200, None, stream=Told()) if call.stream else Reply(200, b"")

        await made.counted(make_call(b""), answer)
        with pytest.raises(BackendFailure):
            await made.counted(make_call(b"", model="bad"), answer)
        replies = [await made.counted(make_call(b"", stream=True), answer) for _ in range(2)]
        assert seen == [1, 1, 1, 2]
        assert made._under_way.total() == 2
        one, other = (reply.stream for reply in replies)
        assert one is not None
        assert other is not None
        sink = Collected()
        one.attach(sink)
        one.end(None)  # type: ignore[attr-defined]  # it is a sink too
        assert sink.ends == [None]
        other.cancel()
        other.cancel()
        assert made._under_way.total() == 0

    asyncio.run(story())
