"""The responses surface: what becomes a call, what is kept of it, and what is read back."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from tests.support.dialects import PLAIN, REPLIES, body
from tests.support.fake_gateway import FakeExchange, Surface, whole
from tests.support.fake_net import HeldStream
from tests.support.wait import until
from tpo_mp.errors import BackendFailure
from tpo_mp.pipeline.delivery import Delivery
from tpo_mp.pipeline.response_log import EventPage
from tpo_mp.store.questions import RESPONSES as RECORDS
from tpo_mp.surfaces import responses_api
from tpo_mp.surfaces.responses_api import FEATURE, KeptDelivery
from tpo_mp.types import Dialect, Reply, Terminal

RESPONSES = "/v1/responses"
BODY = PLAIN["openai_responses"]
FINAL = b'event: response.completed\ndata: {"type":"response.completed","response":%b}\n\n'


def kept(answer: bytes = b'{"id":"resp_7","output":[{"role":"assistant"}]}') -> dict[Any, Any]:
    """A store that holds one response."""
    record = b'{"response":%b,"input":[{"role":"user","content":"before"}]}' % answer
    return {(RECORDS, "resp_7"): (record,)}


def only(surface: Surface, **fields: Any) -> tuple[FakeExchange, Delivery]:
    """Submit one request and answer its delivery."""
    exchange = surface.ask("POST", RESPONSES, BODY | fields)
    (delivery,) = surface.gateway.submitted
    return exchange, delivery


@pytest.mark.parametrize("stream", [False, True])
def test_request_becomes_one_call_with_its_body_untouched(stream: bool) -> None:
    """Unknown fields reach the pipeline as they came."""
    surface = Surface(FEATURE)
    _, delivery = only(surface, stream=stream, x_unknown={"a": [1]})
    assert json.loads(delivery.call.body) == BODY | {"stream": stream, "x_unknown": {"a": [1]}}
    assert (delivery.call.dialect, delivery.call.stream) == (Dialect.OPENAI_RESPONSES, stream)


@pytest.mark.parametrize("store", [None, True, False])
def test_response_is_kept_unless_the_client_forbids_it(store: bool | None) -> None:
    """As the API itself does."""
    _, delivery = only(Surface(FEATURE), store=store)
    assert isinstance(delivery, KeptDelivery) is (store is not False)


def test_answer_comes_also_when_it_cannot_be_kept() -> None:
    """The store of this test takes nothing."""
    surface = Surface(FEATURE)
    exchange, delivery = only(surface)
    answer = body(REPLIES["openai_responses"])

    async def finish() -> None:
        delivery.done(whole(answer), None)
        assert not exchange.ended
        await until(lambda: exchange.ended, what="the answer")

    asyncio.run(finish())
    assert exchange.answer == answer
    assert surface.gateway.ends == [Terminal.DONE]


def test_client_that_leaves_while_its_answer_is_kept_gets_nothing() -> None:
    """One terminal state, and nothing is written."""
    surface = Surface(FEATURE)
    exchange, delivery = only(surface)

    async def leave() -> None:
        delivery.done(whole(body(REPLIES["openai_responses"])), None)
        delivery.left()
        await until(lambda: len(asyncio.all_tasks()) == 1, what="the end of the keeping")

    asyncio.run(leave())
    assert exchange.status == 0
    assert surface.gateway.ends == [Terminal.CANCELLED]


def test_stream_ends_after_its_last_event_was_kept() -> None:
    """Bytes pass as they come, however they are cut."""
    surface, held = Surface(FEATURE), HeldStream()
    exchange, delivery = only(surface, stream=True)
    text = b": hello\n\n" + FINAL % body(REPLIES["openai_responses"])

    async def finish() -> None:
        delivery.done(Reply(200, None, stream=held, content_type=b"text/event-stream"), None)
        for at in range(0, len(text), 50):
            held.data(text[at : at + 50])
        held.end(None)
        assert not exchange.ended
        await until(lambda: exchange.ended, what="the answer")

    asyncio.run(finish())
    assert exchange.answer == text
    assert surface.gateway.ends == [Terminal.DONE]


def test_broken_stream_is_not_kept() -> None:
    """It ends at once, in the error event."""
    surface, held = Surface(FEATURE), HeldStream()
    exchange, delivery = only(surface, stream=True)
    delivery.done(Reply(200, None, stream=held, content_type=b"text/event-stream"), None)
    held.data(b": hello\n\n")
    held.end(BackendFailure("upstream broke"))
    assert exchange.ended
    assert b'"type":"error"' in exchange.answer
    assert surface.gateway.ends == [Terminal.FAILED]


def test_kept_response_is_written_out_before_the_new_input() -> None:
    """Input, output, new input; the reference to it is gone."""
    surface = Surface(FEATURE, stored=kept())
    _, delivery = only(surface, previous_response_id="resp_7")
    sent = json.loads(delivery.call.body)
    assert "previous_response_id" not in sent
    assert [item["role"] for item in sent["input"]] == ["user", "assistant", "user"]


def test_response_that_is_not_kept_here_is_left_to_the_upstream() -> None:
    """It may be the upstream's own."""
    surface = Surface(FEATURE, stored={(RECORDS, "resp_8"): (None,)})
    _, delivery = only(surface, previous_response_id="resp_8")
    assert json.loads(delivery.call.body)["previous_response_id"] == "resp_8"


def unfinished(status: str = "in_progress") -> bytes:
    """A background response's record."""
    state = b'{"id":"x","background":true,"status":"%b","output":[]}' % status.encode()
    return b'{"response":%b,"input":[]}' % state


BACKGROUND = "resp_" + "0" * 32
CALL = "00000000-0000-0000-0000-000000000000"


@pytest.mark.parametrize("stream", [False, True])
def test_background_response_is_run_as_a_stream(stream: bool) -> None:
    """The answer is its first state, or its events; the upstream hears of no background."""
    surface = Surface(FEATURE, pages=[EventPage(b"events", 5, ended=True)])
    exchange = surface.ask("POST", RESPONSES, BODY | {"background": True, "stream": stream})
    (call,) = surface.gateway.background
    assert json.loads(call.body) == BODY | {"stream": True}
    assert call.stream
    assert not surface.gateway.submitted
    if stream:
        assert exchange.answer == b"events"
    else:
        assert exchange.json()["status"] == "queued"


def test_background_response_that_is_not_stored_is_refused() -> None:
    """Nothing is run that nobody could fetch."""
    refused = Surface(FEATURE).refusal(
        "POST", RESPONSES, BODY | {"background": True, "store": False}
    )
    assert (refused.status, refused.param) == (400, "background")


def test_background_response_is_followed_from_a_number_on() -> None:
    """Only one that was made so."""
    stored = {(RECORDS, BACKGROUND): (unfinished(),)}
    surface = Surface(FEATURE, stored=stored, pages=[EventPage(b"rest", 9, ended=True)])
    target = f"{RESPONSES}/{BACKGROUND}?stream=true&starting_after=4"
    assert surface.ask("GET", target).answer == b"rest"
    assert surface.gateway.followed == [(CALL, 4)]
    assert surface.refusal("GET", f"{RESPONSES}/{BACKGROUND}?stream=true").param == "stream"
    other = Surface(FEATURE, stored=kept())
    assert other.refusal("GET", f"{RESPONSES}/resp_7?stream=true").reason == "not_background"
    assert other.refusal("POST", f"{RESPONSES}/resp_7/cancel").reason == "not_background"


@pytest.mark.parametrize("method", ["cancel", "delete"])
def test_unfinished_response_is_cancelled_first(
    method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Then it is shown, or forgotten; one that does not end in time is not."""
    monkeypatch.setattr(responses_api, "_SETTLES_S", 0.05)
    ask = ("POST", f"{RESPONSES}/{BACKGROUND}/cancel")
    if method == "delete":
        ask = ("DELETE", f"{RESPONSES}/{BACKGROUND}")
    stored: dict[Any, Any] = {(RECORDS, BACKGROUND): (unfinished(),)}
    surface = Surface(FEATURE, stored=stored)
    if method == "cancel":
        assert surface.ask(*ask).json()["status"] == "in_progress"
    else:
        assert surface.refusal(*ask).status == 503
    gone = {(RECORDS, BACKGROUND): (unfinished("cancelled"),)}
    surface.gateway.on_cancel = lambda: surface.gateway.stored.update(gone)
    surface.gateway.stored.update(stored)
    if method == "cancel":
        assert surface.ask(*ask).json()["status"] == "cancelled"
    else:
        assert surface.refusal(*ask).status == 503  # this test's store takes nothing
    assert surface.gateway.cancelled == [CALL, CALL]


def test_unfinished_response_cannot_be_gone_on_from() -> None:
    """There is no answer yet to go on from."""
    surface = Surface(FEATURE, stored={(RECORDS, BACKGROUND): (unfinished(),)})
    asked = BODY | {"previous_response_id": BACKGROUND}
    assert surface.refusal("POST", RESPONSES, asked).reason == "not_finished"


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", f"{RESPONSES}/resp_7", 404),
        ("DELETE", f"{RESPONSES}/resp_7", 404),
        ("POST", f"{RESPONSES}/resp_7/cancel", 404),
        ("GET", f"{RESPONSES}/resp_7/input_items", 404),
    ],
)
def test_unknown_response_is_not_found_and_a_silent_store_is_unavailable(
    method: str, path: str, status: int
) -> None:
    """Two different answers: only one of them is worth a retry."""
    known = Surface(FEATURE, stored={(RECORDS, "resp_7"): (None,)})
    assert known.refusal(method, path).status == status
    assert Surface(FEATURE).refusal(method, path).status == 503


def test_kept_response_is_read_back_byte_for_byte() -> None:
    """As it was answered."""
    answer = b'{"id":"resp_7",  "odd": [1]}'
    surface = Surface(FEATURE, stored=kept(answer))
    assert surface.ask("GET", f"{RESPONSES}/resp_7").answer == answer
    listed = surface.ask("GET", f"{RESPONSES}/resp_7/input_items").json()
    assert [item["content"] for item in listed["data"]] == ["before"]
    assert listed["first_id"] == listed["last_id"] == "item_resp_7_0"
    assert not listed["has_more"]
