"""Call ownership: identified, registered, run in the right place, accounted for once."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import msgspec
import pytest

from tests.support.fake_net import HeldStream
from tests.support.fake_shards import SLOTS, FakeHost
from tests.unit.worker.conftest import MakeHost
from tpo_mp.config.sections import AuthKey
from tpo_mp.errors import BackendFailure, Draining, InvalidRequest, RateLimited, Shed, TpoError
from tpo_mp.http.endpoints import Endpoint
from tpo_mp.pipeline.delivery import Delivery
from tpo_mp.shm.callid import CallIds
from tpo_mp.shm.frames import Kind
from tpo_mp.shm.registry import SlotState
from tpo_mp.types import Call, Principal, Priority, Reply, Terminal


def test_call_runs_here_and_is_answered(host: FakeHost) -> None:
    """Registered while it runs, settled when it ends, released when control has its record."""
    shard = host.shards[0]
    delivery = shard.ask()
    assert shard.writer.open_count == 1
    assert len(shard.owner.open) == 1
    shard.up.answer(Reply(200, b"said"))
    assert delivery.exchange.answer == b"said"  # type: ignore[attr-defined]
    assert not shard.owner.open
    assert shard.writer.open_count == 1
    host.pump()
    shard.account.flush()
    assert shard.writer.open_count == 0
    assert [kind for _, kind, _ in host.to_control()] == [Kind.RECORDS]


def test_a_failed_call_is_an_orphan_until_its_letter_is_sent(host: FakeHost) -> None:
    """What died with its worker is then found in its slot, and how the other calls stood."""
    shard = host.shards[0]
    for answer in (Reply(200, b"said"), BackendFailure("no", reason="upstream_error")):
        shard.ask()
        shard.up.answer(answer)
    host.pump()
    host.registry.orphan_seat(0, 1)
    left = [orphan.state_before for orphan in host.registry.orphans()]
    assert sorted(left) == [SlotState.SETTLED, SlotState.OWING]
    shard.account.flush()
    assert [kind for _, kind, _ in host.to_control()] == [Kind.DEAD_LETTER, Kind.RECORDS]


def test_identity_comes_from_seat_and_head(host: FakeHost) -> None:
    """The id names seat and epoch; the client's own is a label."""
    shard = host.shards[1]
    exchange = shard.exchange(
        request_id="r-1", session="s", headers={b"authorization": b"Bearer x"}
    )
    call = shard.owner.new_call(exchange, model="m", body=b"", stream=True, affinity="other")
    place = CallIds.parse(call.id)
    assert place is not None
    assert (place.seat, place.epoch) == (1, 1)
    assert call.client_request_id == "r-1"
    assert (call.session, call.affinity) == ("s", "s")
    assert call.authorization == b"Bearer x"
    assert call.shard == 1


@pytest.mark.parametrize(
    ("session", "litellm", "affinity", "chosen"),
    [
        (None, None, None, None),
        (None, None, "body", "body"),
        (None, None, "", None),
        ("head", None, "body", "head"),
        ("head", b"lite", "body", "head"),
        (None, b"lite", "body", "lite"),
    ],
)
def test_affinity_is_the_first_key_given(
    host: FakeHost, session: str | None, litellm: bytes | None, affinity: str | None,
    chosen: str | None,
) -> None:  # fmt: skip
    """Our header, then LiteLLM's, then the body's; only ours names a session."""
    headers = {} if litellm is None else {b"x-litellm-session-id": litellm}
    exchange = host.shards[0].exchange(session=session, headers=headers, special=bool(headers))
    call = host.shards[0].owner.new_call(
        exchange, model="m", body=b"", stream=False, affinity=affinity
    )
    assert call.affinity == chosen
    assert call.session == session


def test_session_of_a_native_body_outranks_a_hint(host: FakeHost) -> None:
    """``session_id`` comes before LiteLLM's header; without one the header counts."""
    for affinity, chosen in (("body", "body"), (None, "lite")):
        exchange = host.shards[0].exchange(headers={b"x-litellm-session-id": b"lite"}, special=True)
        exchange.head.endpoint = Endpoint("POST", "/v1/prompt", lambda _exchange: None, "native")
        call = host.shards[0].owner.new_call(
            exchange, model="m", body=b"", stream=False, affinity=affinity
        )
        assert call.affinity == chosen


def test_a_call_has_the_tier_of_its_key_or_of_its_tenants(host: FakeHost) -> None:
    """Calls that begin without a key (of a job, of a dead letter) have their tenant's first."""
    owner = host.shards[0].owner
    exchange = host.shards[0].exchange()
    exchange.head.principal = Principal("t", "k2", "premium")
    call = owner.new_call(exchange, model="m", body=b"", stream=False, affinity=None)
    assert (call.tenant, call.tier) == ("t", "premium")
    first = AuthKey(id="k1", tenant="t", tier="free", hash="0" * 64)
    other = AuthKey(id="k2", tenant="t", tier="premium", hash="1" * 64)
    config = owner.pipeline.config
    auth = msgspec.structs.replace(config.auth, keys=(first, other))
    config = msgspec.structs.replace(config, auth=auth)
    owner.use(replace(owner.pipeline, config=config))
    for tenant, tier in (("t", "free"), ("nobody's", "standard")):
        keyless = Call(id=call.id, model="m", body=b"{}", stream=False, started_at=0.0)
        keyless.tenant = tenant
        owner.submit(Delivery(owner, exchange, keyless))
        assert keyless.tier == tier


def test_long_affinity_is_hashed(host: FakeHost) -> None:
    """Any string may be a key; all of it counts, and it stays small."""
    owner = host.shards[0].owner
    keys = [
        owner.new_call(host.shards[0].exchange(), model="m", body=b"", stream=False, affinity=key)
        .affinity
        for key in ("x" * 100_000, "x" * 100_001, "\ud800" * 600)
    ]  # fmt: skip
    assert len(set(keys)) == 3
    assert all(key is not None and len(key) <= 512 for key in keys)


@pytest.mark.parametrize(
    ("headers", "field", "value"),
    [
        ({b"x-tpo-priority": b"Critical"}, "priority", Priority.CRITICAL),
        ({b"x-tpo-priority": b"low"}, "priority", Priority.LOW),
    ],
)
def test_headers_steer_the_call(
    host: FakeHost, headers: dict[bytes, bytes], field: str, value: Any
) -> None:
    """In any case."""
    exchange = host.shards[0].exchange(headers=headers, special=True)
    call = host.shards[0].owner.new_call(exchange, model="m", body=b"", stream=False, affinity=None)
    assert getattr(call, field) == value


def test_orders_to_a_simulator_travel_with_the_call(host: FakeHost) -> None:
    """They go upstream with the count of tries; without an order nothing does."""
    owner = host.shards[0].owner
    tries = {b"x-stainless-retry-count": b"1"}
    for headers, forward in (
        (tries | {b"x-sim-error": b"429"}, b"x-sim-error: 429\r\nx-stainless-retry-count: 1\r\n"),
        (tries | {b"x-api-key": b"k"}, b""),
    ):
        exchange = host.shards[0].exchange(headers=headers, special=True)
        call = owner.new_call(exchange, model="m", body=b"", stream=False, affinity=None)
        assert call.forward == forward


@pytest.mark.parametrize(
    "headers",
    [{b"x-tpo-priority": b"urgent"}, {b"x-tpo-deadline-ms": b"0"}, {b"x-tpo-deadline-ms": b"-1"},
     {b"x-tpo-deadline-ms": b"1.5"}, {b"x-tpo-deadline-ms": b""},
     {b"x-sim-error": b"9" * 300}, {b"x-tpo-deadline-ms": b"9" * 30},
     {b"x-tpo-deadline-ms": b"604800001"}],
)  # fmt: skip
def test_nonsense_in_steering_headers_is_refused(
    host: FakeHost, headers: dict[bytes, bytes]
) -> None:
    """With the header's name."""
    exchange = host.shards[0].exchange(headers=headers, special=True)
    with pytest.raises(InvalidRequest) as refused:
        host.shards[0].owner.new_call(exchange, model="m", body=b"", stream=False, affinity=None)
    assert refused.value.param == next(iter(headers)).decode()


def test_deadline_ends_the_call(host: FakeHost) -> None:
    """Filed with the wheel; 504, and the upstream is let go."""
    shard = host.shards[0]
    delivery = shard.ask(headers={b"x-tpo-deadline-ms": b"250"}, special=True)
    assert delivery.deadline == pytest.approx(delivery.call.started_at + 0.25)
    shard.wheel.tick(delivery.call.started_at + 0.2)
    assert not delivery.settled
    shard.wheel.tick(delivery.call.started_at + 0.4)
    assert delivery.terminal is Terminal.EXPIRED
    assert delivery.exchange.status == 504  # type: ignore[attr-defined]
    assert shard.up.cancelled == 1


def test_refusals_before_submission(make_host: MakeHost) -> None:
    """A draining host, and one with too many open calls anywhere."""
    host = make_host(max_open=3)
    owner = host.shards[0].owner
    owner.others_open = 2
    host.shards[0].ask()
    with pytest.raises(Shed, match="open calls"):
        host.shards[0].ask()
    owner.others_open = 0
    host.shards[0].ask()
    owner.draining = True
    with pytest.raises(Draining):
        host.shards[0].ask()


def test_full_registry_sheds(host: FakeHost) -> None:
    """Open calls take every slot; the next is refused and nothing leaks."""
    shard = host.shards[0]
    for _ in range(SLOTS):
        shard.ask()
    with pytest.raises(Shed):
        shard.ask()
    assert len(shard.owner.open) == SLOTS
    shard.up.answer(Reply(200, b"x"), 0)
    host.pump()
    shard.account.flush()
    shard.ask()


def test_shard_serves_on_without_control(host: FakeHost) -> None:
    """Nobody takes its records: the slots of settled calls are given to new ones."""
    shard = host.shards[0]
    shard.fill_ring(host.control)
    for _ in range(5 * SLOTS):
        delivery = shard.ask()
        shard.up.answer(Reply(200, b"x"))
        shard.loop.run()
        assert delivery.terminal is Terminal.DONE
    host.to_control()
    shard.account.flush()
    assert len([1 for _, kind, _ in host.to_control() if kind == Kind.RECORDS]) >= 5


@pytest.mark.parametrize("error", [RateLimited("no"), KeyError("defect")])
def test_chain_that_raises_at_once_fails_its_call_alone(host: FakeHost, error: Exception) -> None:
    """Ours or a defect; the shard goes on."""
    shard = host.shards[0]
    shard.up.error = error
    delivery = shard.ask()
    assert delivery.terminal is Terminal.FAILED
    assert delivery.exchange.status == (429 if isinstance(error, TpoError) else 500)  # type: ignore[attr-defined]
    host.pump()
    assert shard.crashes == ([] if isinstance(error, TpoError) else [error])
    shard.up.error = None
    shard.ask()
    assert len(shard.up.calls) == 1


def test_client_that_leaves_cancels_the_upstream(host: FakeHost) -> None:
    """Before the answer, and in mid-stream."""
    shard, held = host.shards[0], HeldStream()
    first = shard.ask()
    first.left()
    assert shard.up.cancelled == 1
    second = shard.ask(stream=True)
    shard.up.answer(Reply(200, None, stream=held))
    second.left()
    assert held.told == ["cancel"]
    assert [d.terminal for d in (first, second)] == [Terminal.CANCELLED] * 2
    assert not shard.owner.open


def test_stopping_ends_every_open_call_readably(host: FakeHost) -> None:
    """Whole replies as errors, streams in band."""
    shard, held = host.shards[0], HeldStream()
    waiting, flowing = shard.ask(), shard.ask(stream=True)
    shard.up.answer(Reply(200, None, stream=held))
    held.data(b"data: 1\n\n")
    shard.owner.stop_all(Draining("leaving"))
    assert waiting.exchange.status == 503  # type: ignore[attr-defined]
    assert b'"code":"draining"' in flowing.exchange.answer  # type: ignore[attr-defined]
    assert flowing.exchange.ended  # type: ignore[attr-defined]
    assert not shard.owner.open


def test_session_runs_where_it_lives(host: FakeHost) -> None:
    """Here without a session or with one of ours; there with one of theirs."""
    here, there = host.shards
    here.ask()
    here.ask(session=host.session_on(0))
    assert len(here.up.calls) == 2
    delivery = here.ask(session=host.session_on(1))
    host.pump()
    assert len(there.up.calls) == 1
    assert delivery.call.shard == 1
    there.up.answer(Reply(200, b"from there"))
    host.pump()
    assert delivery.exchange.answer == b"from there"  # type: ignore[attr-defined]
    assert b"x-tpo-shard: 1\r\n" in delivery.exchange.extra  # type: ignore[attr-defined]


def test_call_is_placed_again_when_its_shard_dies(host: FakeHost) -> None:
    """Nothing was sent yet: the successor gets it."""
    here, there = host.shards
    delivery = here.ask(session=host.session_on(1))
    host.pump(here)
    assert not delivery.call.unclear
    host.die(1)
    here.mesh.tick()
    assert delivery.call.unclear, "who died may have asked a backend"
    assert len(here.mesh._remotes) == 1
    assert here.up.calls == there.up.calls == []


def test_call_is_served_here_when_its_shard_has_no_successor(host: FakeHost) -> None:
    """And its answer is the call's."""
    here = host.shards[0]
    delivery = here.ask(session=host.session_on(1))
    host.pump(here)
    host.die(1, back=False)
    here.mesh.tick()
    assert len(here.up.calls) == 1
    assert delivery.call.shard == 0
    here.up.answer(Reply(200, b"here after all"))
    assert delivery.exchange.answer == b"here after all"  # type: ignore[attr-defined]


def test_call_that_two_shards_died_with_gets_no_third(host: FakeHost) -> None:
    """Nor does another one with its body; others are served."""
    here = host.shards[0]
    delivery = here.ask(b'{"kills":1}', session=host.session_on(1))
    host.pump(here)
    for _ in range(2):
        host.die(1)
        here.mesh.tick()
    assert here.up.calls == []
    assert not here.mesh._remotes
    again = here.ask(b'{"kills":1}')
    for refused in (delivery, again):
        assert refused.status == 503
        assert b'"code":"poison"' in refused.exchange.answer  # type: ignore[attr-defined]
        assert b"x-should-retry: false" in refused.exchange.extra  # type: ignore[attr-defined]
    here.ask(b'{"kills":0}')
    assert len(here.up.calls) == 1


def test_bounced_call_follows_the_map(host: FakeHost) -> None:
    """The slot map moved while the call was under way."""
    here, there = host.shards
    delivery = here.ask(session=host.session_on(1))
    host.plane.publish_map([0] * 1024)
    host.pump()
    assert there.up.calls == []
    assert len(here.up.calls) == 1
    here.up.answer(BackendFailure("x"))
    assert delivery.terminal is Terminal.FAILED


def test_registry_says_what_a_call_is(host: FakeHost) -> None:
    """For dead letters and reruns, should this process die."""
    shard = host.shards[0]
    delivery = shard.ask(b'{"a":1}', session=host.session_on(0), request_id="r-9")
    assert host.registry.orphan_seat(0, 1) == 1
    (orphan,) = host.registry.orphans()
    assert orphan.body == b'{"a":1}'
    assert delivery.call.id.replace("-", "") == orphan.call_id.hex()
    assert b"r-9" in orphan.meta
    assert b"/v1/chat/completions" in orphan.meta


def test_gateway_answers_what_surfaces_ask(host: FakeHost) -> None:
    """Models, default and routes are the pipeline's."""
    owner = host.shards[0].owner
    owner.table = type("Table", (), {"all": ["route"]})()  # type: ignore[assignment]
    assert owner.endpoints() == ["route"]
    assert owner.knows_model("anything")
    assert owner.default_model() is None
