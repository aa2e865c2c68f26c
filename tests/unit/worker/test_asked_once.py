"""What one worker was answered no other asks again, at whatever instant it comes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tests.support.dialects import REPLIES, body, encode
from tests.support.fake_net import HeldStream
from tests.support.fake_shards import FakeHost, FakeShard
from tpo_mp.dialects import openai_chat
from tpo_mp.dialects.translate import events_of
from tpo_mp.pipeline.delivery import Delivery
from tpo_mp.types import Reply

ASKED = b'{"temperature":0,"messages":[{"role":"user","content":"x"}]}'
WHOLE = body(REPLIES["openai_chat"])
STREAM = encode("openai_chat", events_of(openai_chat.reply_to_canonical(WHOLE)))


def before(part: Any, name: str, happens: Callable[[], object]) -> None:
    """Let something happen just before ``part.name`` is next called, once."""
    plain = getattr(part, name)

    def then(*args: Any) -> Any:
        setattr(part, name, plain)
        happens()
        return plain(*args)

    setattr(part, name, then)


def streams(shard: FakeShard) -> HeldStream:
    """The upstream of a shard begins to answer."""
    held = HeldStream()
    reply = Reply(200, None, stream=held, content_type=b"text/event-stream")
    reply.finish_reason = "stop"
    shard.up.answer(reply)
    return held


def answered(delivery: Delivery, way: str) -> bool:
    """Whether a client got an answer, and how."""
    exchange: Any = delivery.exchange
    return exchange.status == 200 and bool(exchange.answer) and delivery.call.cache == way


def test_a_call_on_its_way_to_an_answer_that_is_over(host: FakeHost) -> None:
    """It is answered where it arrives, from what was kept there."""
    home, away = host.shards
    home.ask(ASKED)
    late = away.ask(ASKED)  # it waits in the ring
    home.up.answer(Reply(200, WHOLE))
    host.pump()
    assert (len(home.up.calls), len(away.up.calls)) == (1, 0)
    assert answered(late, "hit")
    assert away.peers.courier.leader(b"k" * 16) == away.seat
    assert [len(shard.peers.courier._claims) for shard in host.shards] == [0, 1]


@pytest.mark.parametrize("moment", ["claimed", "given_back"])
def test_a_call_that_looked_before_the_answer_was_kept(host: FakeHost, moment: str) -> None:
    """Whoever finds the key free again looks once more; and it is free only once that is kept."""
    home, away = host.shards
    home.ask(ASKED)
    late: list[Delivery] = []
    if moment == "given_back":
        before(home.peers.courier, "leave", lambda: late.append(away.ask(ASKED)))
        home.up.answer(Reply(200, WHOLE))
    else:
        before(away.peers.courier, "leader", lambda: home.up.answer(Reply(200, WHOLE)))
        late.append(away.ask(ASKED))
    host.pump()
    assert (len(home.up.calls), len(away.up.calls)) == (1, 0)
    assert answered(late[0], "hit")


@pytest.mark.parametrize("first", ["reads slowly", "left"])
def test_a_stream_is_kept_whatever_its_first_client_does(host: FakeHost, first: str) -> None:
    """Once the upstream is through, and not only when that client is."""
    home, away = host.shards
    one, two = home.ask(ASKED, stream=True), home.ask(ASKED, stream=True)
    held = streams(home)
    held.data(STREAM[:50])
    if first == "left":
        one.left()
    else:
        one.exchange.source.pause()  # type: ignore[attr-defined]
    held.data(STREAM[50:])
    held.end()
    assert answered(two, "coalesced")
    late = away.ask(ASKED, stream=True)
    host.pump()
    assert (len(home.up.calls), len(away.up.calls)) == (1, 0)
    assert answered(late, "hit")


def test_what_could_not_be_kept_is_asked_where_the_call_arrives(host: FakeHost) -> None:
    """An answer that was cut is nobody else's."""
    home, away = host.shards
    home.ask(ASKED)
    late = away.ask(ASKED)
    home.up.answer(Reply(200, WHOLE.replace(b'"stop"', b'"content_filter"')))
    host.pump()
    assert (len(home.up.calls), len(away.up.calls)) == (2, 0)
    home.up.answer(Reply(200, WHOLE))
    host.pump()
    assert answered(late, "miss")
    assert answered(away.ask(ASKED), "hit"), "kept where it was asked"
