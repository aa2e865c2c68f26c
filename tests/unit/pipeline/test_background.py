"""A background response's delivery: its states, its log, one end."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from tests.support.dialects import REPLIES, body, datas, encode
from tests.support.fake_env import make_call
from tests.support.fake_gateway import FakeGateway, whole
from tests.support.fake_net import HeldStream
from tpo_mp.dialects import openai_responses
from tpo_mp.dialects.openai_responses_background import accepted
from tpo_mp.dialects.translate import events_of
from tpo_mp.errors import BackendFailure, Cancelled, Draining, TpoError
from tpo_mp.pipeline.answer import TOLD
from tpo_mp.pipeline.background import BackgroundDelivery
from tpo_mp.pipeline.response_log import LogSpace, ResponseLog
from tpo_mp.types import Dialect, Reply, Terminal

ASKED = b'{"model":"m","input":"hi"}'
STREAM = encode(
    "openai_responses",
    events_of(openai_responses.reply_to_canonical(body(REPLIES["openai_responses"]))),
)


class Made:
    """One background response, and all that was heard of it."""

    def __init__(self) -> None:
        self.gateway = FakeGateway()
        self.call = make_call(ASKED)
        self.call.dialect, self.call.stream = Dialect.OPENAI_RESPONSES, True
        self.log = ResponseLog(LogSpace())
        self.shown: list[dict[str, Any]] = []
        first = accepted(ASKED, "resp_ours", 5)
        self.delivery = BackgroundDelivery(
            self.gateway, self.call, first, self.log, self.shown.append
        )
        self.held = HeldStream()

    def begin(self) -> None:
        """The upstream's first event is there."""
        self.delivery.done(Reply(200, None, stream=self.held), None)

    @property
    def states(self) -> list[str]:
        """Every state it was seen in."""
        return [shown["status"] for shown in self.shown]

    def events(self) -> list[dict[str, Any]]:
        """The log."""
        return datas(asyncio.run(self.log.page(-1, 0.0, 1 << 20)).data)


@pytest.mark.parametrize("size", [1, 50, 1 << 20])
def test_stream_becomes_states_and_a_log(size: int) -> None:
    """However it is cut; the final state is the last event's response."""
    made = Made()
    made.begin()
    for at in range(0, len(STREAM), size):
        made.held.data(STREAM[at : at + size])
    made.held.end()
    assert made.states == ["in_progress", "completed"]
    assert made.gateway.ends == [Terminal.DONE]
    assert made.log.ended
    events = made.events()
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    assert events[-1]["response"] == made.shown[-1]
    assert made.shown[-1]["id"] == "resp_ours"


def test_whole_answer_is_kept_too() -> None:
    """From a backend that cannot stream."""
    made = Made()
    made.delivery.done(whole(body(REPLIES["openai_responses"])), None)
    assert made.states == ["completed"]
    assert made.shown[-1]["output"] == REPLIES["openai_responses"]["output"]
    assert made.shown[-1]["id"] == "resp_ours"


@pytest.mark.parametrize("answer", [b"", b"[]", b"<html>"])
def test_whole_answer_that_is_none_is_a_failure(answer: bytes) -> None:
    """Never an empty success."""
    made = Made()
    made.delivery.done(whole(answer), None)
    assert made.states == ["failed"]
    assert made.gateway.ends == [Terminal.FAILED]


@pytest.mark.parametrize(
    ("error", "state", "terminal"),
    [
        (BackendFailure("broke"), "failed", Terminal.FAILED),
        (Cancelled("enough"), "cancelled", Terminal.CANCELLED),
        (Draining("closing"), "failed", Terminal.FAILED),
    ],
)
@pytest.mark.parametrize("begun", [False, True])
def test_stopped_call_ends_once(
    error: TpoError, state: str, terminal: Terminal, begun: bool
) -> None:
    """Before and after the first event: state, log, account; the upstream is left."""
    made = Made()
    if begun:
        made.begin()
        made.held.data(STREAM[:200])
    made.delivery.stop(error)
    made.delivery.stop(error)
    made.delivery.done(None, error)
    assert made.states[-1] == state
    assert made.states.count(state) == 1
    assert made.gateway.ends == [terminal]
    assert made.log.ended
    assert made.events()[-1]["type"] == "error"
    assert made.held.told == (["cancel"] if begun else [])


def test_stream_without_its_last_event_is_a_failure() -> None:
    """A proper end of body is not enough."""
    made = Made()
    made.begin()
    made.held.data(STREAM[: STREAM.rfind(b"event:")])
    made.held.end()
    assert made.states == ["in_progress", "failed"]
    assert made.events()[-1]["code"] == "truncated_stream"


def test_failure_the_stream_told_of_is_told_once() -> None:
    """In the backend's own words."""
    made = Made()
    made.begin()
    told = b'data: {"type":"response.failed","response":{"id":"x","status":"failed","error":7}}\n\n'
    made.held.data(told)
    made.held.end(BackendFailure("upstream failed", body=TOLD))
    assert made.states == ["in_progress", "failed"]
    assert made.shown[-1]["error"] == 7
    assert [event["type"] for event in made.events()] == ["response.failed"]


def test_garbage_in_the_stream_ends_it() -> None:
    """The upstream is left, nothing after it is read."""
    made = Made()
    made.begin()
    made.held.data(b"data: {]\n\n")
    made.held.data(STREAM)
    assert made.states == ["in_progress", "failed"]
    assert made.held.told == ["cancel"]
    assert made.gateway.ends == [Terminal.FAILED]


def test_stream_that_goes_to_a_log_is_sent_to_nobody() -> None:
    """Its bytes are counted, but no client had them."""
    made = Made()
    made.begin()
    made.held.data(STREAM[:200])
    assert (made.delivery.bytes_out, made.delivery.sent()) == (200, 0)
