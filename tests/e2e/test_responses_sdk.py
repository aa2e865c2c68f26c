"""Responses through the unmodified OpenAI SDK: made, streamed, kept, continued, forgotten."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import openai
import pytest
from openai import OpenAI

from tests.support.gateway import Gateway


@pytest.fixture
def client(echo_gateway: Gateway) -> Iterator[OpenAI]:
    """A client that does not retry, so that a test sees the first answer."""
    url = f"{echo_gateway.url}/v1"
    with OpenAI(base_url=url, api_key="unused", max_retries=0, timeout=20) as made:
        yield made


def test_response_is_answered_and_kept(client: OpenAI) -> None:
    """What is fetched later is what was answered."""
    made = client.responses.create(model="echo", input="grüße an alle 🙂")
    assert made.output_text == "grüße an alle 🙂"
    assert made.status == "completed"
    assert made.usage is not None
    assert (made.usage.input_tokens, made.usage.output_tokens) == (4, 4)
    assert client.responses.retrieve(made.id) == made


def test_response_is_streamed_and_kept(client: OpenAI) -> None:
    """Numbered events that join to the words; the last holds what is kept."""
    events = list(client.responses.create(model="echo", input="one two three", stream=True))
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert events[0].type == "response.created"
    last = events[-1]
    assert last.type == "response.completed"
    words = [event.delta for event in events if event.type == "response.output_text.delta"]
    assert "".join(words) == last.response.output_text == "one two three"
    assert client.responses.retrieve(last.response.id).output_text == "one two three"


def test_conversation_goes_on_from_a_kept_response(client: OpenAI) -> None:
    """Its input and output are written out before the new input."""
    first = client.responses.create(model="echo", input="first words", instructions="be brief")
    second = client.responses.create(
        model="echo", input="second words", previous_response_id=first.id
    )
    assert second.output_text == "second words"
    listed: Any = client.responses.input_items.list(second.id, order="asc")
    said = [item.content[0].text for item in listed]
    assert said == ["first words", "first words", "second words"]
    assert [item.role for item in listed] == ["user", "assistant", "user"]
    newest: Any = client.responses.input_items.list(second.id, limit=1)
    assert newest.data[0].content[0].text == "second words"
    assert newest.has_more
    assert [item.content[0].text for item in newest] == said[::-1]


def test_deleted_response_is_gone(client: OpenAI) -> None:
    """And cannot be deleted twice."""
    made = client.responses.create(model="echo", input="forget me")
    client.responses.delete(made.id)
    for ask in (client.responses.retrieve, client.responses.delete, client.responses.cancel):
        with pytest.raises(openai.NotFoundError):
            ask(made.id)


def test_response_that_must_not_be_kept_is_not(client: OpenAI) -> None:
    """``store: false``, whole and streamed."""
    made = client.responses.create(model="echo", input="private", store=False)
    stream = client.responses.create(model="echo", input="private", store=False, stream=True)
    last = list(stream)[-1]
    assert last.type == "response.completed"
    for name in (made.id, last.response.id):
        with pytest.raises(openai.NotFoundError):
            client.responses.retrieve(name)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"background": True, "store": False}, "background"),
        ({"previous_response_id": "resp_nobody"}, "previous_response_id"),
        ({"temperature": 9}, "temperature"),
        ({"conversation": "conv_1"}, "conversation"),
        ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
    ],
)
def test_what_cannot_be_done_is_refused_by_name(
    client: OpenAI, fields: dict[str, Any], param: str
) -> None:
    """A 400 of this API."""
    with pytest.raises(openai.BadRequestError) as caught:
        client.responses.create(model="echo", input="hi", **fields)
    assert caught.value.param == param


def test_finished_response_cannot_be_cancelled(client: OpenAI) -> None:
    """Only background ones can."""
    made = client.responses.create(model="echo", input="hi")
    with pytest.raises(openai.BadRequestError):
        client.responses.cancel(made.id)


def test_bad_pages_are_refused(echo_gateway: Gateway, client: OpenAI) -> None:
    """Each parameter by its name."""
    name = client.responses.create(model="echo", input="hi").id
    for query in ("limit=0", "limit=101", "limit=x", "order=up", "after=nobody"):
        reply = echo_gateway.ask(f"/v1/responses/{name}/input_items?{query}")
        assert reply.status == 400
        assert reply.json()["error"]["param"] == query.partition("=")[0]
    assert echo_gateway.ask(f"/v1/responses/{name}?stream=true").status == 400
    assert echo_gateway.ask("/v1/responses/not%2Fan%20id").status == 404
