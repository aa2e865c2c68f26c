"""The responses surface: what becomes a call, what is kept of it, and what is read back."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from tests.support.dialects import PLAIN, REPLIES, body
from tests.support.fake_gateway import FakeExchange, Surface, whole
from tests.support.fake_net import HeldStream
from tpo_mp.errors import BackendFailure, InvalidRequest
from tpo_mp.pipeline.delivery import Delivery
from tpo_mp.surfaces.responses_api import FEATURE, TABLE, KeptDelivery
from tpo_mp.types import Dialect, Reply, Terminal

RESPONSES = "/v1/responses"
BODY = PLAIN["openai_responses"]
FINAL = b'event: response.completed\ndata: {"type":"response.completed","response":%b}\n\n'


def kept(answer: bytes = b'{"id":"resp_7","output":[{"role":"assistant"}]}') -> dict[Any, Any]:
    """A store that holds one response."""
    record = b'{"response":%b,"input":[{"role":"user","content":"before"}]}' % answer
    return {(TABLE, "resp_7"): (record,)}


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
        while not exchange.ended:
            await asyncio.sleep(0)

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
        for _ in range(5):
            await asyncio.sleep(0)

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
        while not exchange.ended:
            await asyncio.sleep(0)

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
    surface = Surface(FEATURE, stored={(TABLE, "resp_8"): (None,)})
    _, delivery = only(surface, previous_response_id="resp_8")
    assert json.loads(delivery.call.body)["previous_response_id"] == "resp_8"


def test_background_is_refused() -> None:
    """Nothing is run that nobody could fetch."""

    async def ask() -> None:
        surface = Surface(FEATURE)
        handler = surface.gateway.table[0].handler
        await handler(FakeExchange(None, body(BODY, background=True)))  # type: ignore[arg-type, misc]

    with pytest.raises(InvalidRequest) as caught:
        asyncio.run(ask())
    assert caught.value.param == "background"


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
    known = Surface(FEATURE, stored={(TABLE, "resp_7"): (None,)})
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
