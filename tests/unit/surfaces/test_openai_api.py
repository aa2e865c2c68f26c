"""The OpenAI surface: what becomes a call, and what clients get back."""

from __future__ import annotations

import json
from datetime import datetime
from typing import Any

import pytest

from tests.support.fake_gateway import Surface, whole
from tests.support.raw import chat
from tpo_mp.errors import BackendFailure, Cancelled, RateLimited
from tpo_mp.surfaces.openai_api import FEATURE
from tpo_mp.types import Reply, Sink, Terminal

CHAT = "/v1/chat/completions"


class Held:
    """A stream the test feeds by hand."""

    def __init__(self) -> None:
        self.sink: Sink | None = None
        self.cancelled = False

    def attach(self, sink: Sink) -> None:
        """Keep the sink."""
        self.sink = sink

    def pause(self) -> None:
        """Nothing flows by itself."""

    def resume(self) -> None:
        """Nothing flows by itself."""

    def cancel(self) -> None:
        """Note it."""
        self.cancelled = True


def test_chat_becomes_one_call_with_its_body_untouched() -> None:
    """Unknown fields reach the pipeline as they came."""
    surface = Surface(FEATURE)
    body = chat("hi", seed=4, x_unknown={"a": [1]})
    surface.ask("POST", CHAT, body)
    (delivery,) = surface.gateway.submitted
    assert json.loads(delivery.call.body) == body
    assert delivery.call.model == "echo"
    assert not delivery.call.stream


def test_routing_fields_are_stripped() -> None:
    """A client cannot choose the upstream."""
    surface = Surface(FEATURE)
    surface.ask("POST", CHAT, chat("hi", api_base="http://evil.example", api_key="k"))
    assert not {"api_base", "api_key"} & set(json.loads(surface.gateway.submitted[0].call.body))


@pytest.mark.parametrize(
    ("fields", "affinity"),
    [
        ({}, None),
        ({"user": "u"}, "u"),
        ({"user": "u", "metadata": {"user_id": "m"}}, "m"),
        ({"user": "u", "metadata": {"user_id": "m"}, "prompt_cache_key": "p"}, "p"),
        ({"metadata": {"user_id": 7}}, None),
        ({"metadata": "odd"}, None),
    ],
)
def test_affinity_is_the_first_key_of_the_body(
    fields: dict[str, Any], affinity: str | None
) -> None:
    """Cache key, then metadata, then user."""
    surface = Surface(FEATURE)
    surface.ask("POST", CHAT, chat("hi", **fields))
    assert surface.gateway.affinities == [affinity]


def test_usage_is_wanted_only_when_asked() -> None:
    """``stream_options.include_usage`` sets the call's wish."""
    for include_usage, wanted in ((None, False), (False, False), (True, True)):
        surface = Surface(FEATURE)
        options = {"include_usage": include_usage}
        surface.ask("POST", CHAT, chat("hi", stream=True, stream_options=options))
        assert surface.gateway.submitted[0].call.usage_wanted is wanted


def test_whole_reply_is_answered_with_its_headers() -> None:
    """Body as it came, ids and timings beside it, settled once as done."""
    surface = Surface(FEATURE)
    exchange = surface.ask("POST", CHAT, chat())
    surface.gateway.submitted[0].done(whole(b'{"id":"x"}'), None)
    assert (exchange.status, exchange.answer) == (200, b'{"id":"x"}')
    assert b"x-tpo-call-id: call-1\r\n" in exchange.extra
    assert b"server-timing: " in exchange.extra
    assert surface.gateway.ends == [Terminal.DONE]


def test_error_is_answered_in_the_dialect_with_when_to_come_back() -> None:
    """Status, envelope and retry headers are the error's own."""
    surface = Surface(FEATURE)
    exchange = surface.ask("POST", CHAT, chat())
    surface.gateway.submitted[0].done(None, RateLimited("slow down", retry_after_s=2))
    assert exchange.status == 429
    assert exchange.json()["error"]["message"] == "slow down"
    assert b"retry-after: 2\r\n" in exchange.extra
    assert surface.gateway.ends == [Terminal.FAILED]


def test_stream_passes_through_and_ends() -> None:
    """Bytes as they came, one end, no buffering proxies."""
    surface, held = Surface(FEATURE), Held()
    exchange = surface.ask("POST", CHAT, chat(stream=True))
    reply = Reply(200, None, stream=held, content_type=b"text/event-stream")
    surface.gateway.submitted[0].done(reply, None)
    assert held.sink is not None
    held.sink.data(b"data: 1\n\n")
    held.sink.data(b"data: [DONE]\n\n")
    held.sink.end(None)
    assert exchange.answer == b"data: 1\n\ndata: [DONE]\n\n"
    assert exchange.ended
    assert b"x-accel-buffering: no\r\n" in exchange.extra
    assert surface.gateway.ends == [Terminal.DONE]


def test_stream_that_breaks_says_so_in_band() -> None:
    """After the first byte the error is an event, and the body still ends properly."""
    surface, held = Surface(FEATURE), Held()
    exchange = surface.ask("POST", CHAT, chat(stream=True))
    surface.gateway.submitted[0].done(Reply(200, None, stream=held), None)
    assert held.sink is not None
    held.sink.data(b"data: 1\n\n")
    held.sink.end(BackendFailure("it broke"))
    assert exchange.answer.startswith(b'data: 1\n\ndata: {"error":')
    assert exchange.ended
    assert surface.gateway.ends == [Terminal.FAILED]


def test_client_that_leaves_cancels_the_stream() -> None:
    """Nothing is written after it left, and the call is settled as cancelled."""
    surface, held = Surface(FEATURE), Held()
    exchange = surface.ask("POST", CHAT, chat(stream=True))
    surface.gateway.submitted[0].done(Reply(200, None, stream=held), None)
    assert exchange.on_disconnect is not None
    exchange.on_disconnect()
    assert held.cancelled
    assert surface.gateway.ends == [Terminal.CANCELLED]
    assert isinstance(surface.gateway.submitted[0].error, Cancelled)


def test_models_are_listed_in_the_apis_shape() -> None:
    """A list of objects, in the gateway's order."""
    listed = Surface(FEATURE, names=["b", "a"]).ask("GET", "/v1/models").json()
    assert listed["object"] == "list"
    assert [model["id"] for model in listed["data"]] == ["b", "a"]
    assert all(model["object"] == "model" for model in listed["data"])


def test_models_are_listed_in_anthropics_shape_too() -> None:
    """One page, whole, with the names and times that its SDK reads."""
    listed = Surface(FEATURE, names=["b", "a"]).ask("GET", "/v1/models").json()
    assert (listed["has_more"], listed["first_id"], listed["last_id"]) == (False, "b", "a")
    for model in listed["data"]:
        assert (model["type"], model["display_name"]) == ("model", model["id"])
        made = datetime.fromisoformat(model["created_at"])
        assert made.timestamp() == model["created"]
    empty = Surface(FEATURE, names=[]).ask("GET", "/v1/models").json()
    assert (empty["data"], empty["first_id"], empty["last_id"]) == ([], None, None)


def test_model_names_may_contain_slashes() -> None:
    """A folder or a namespaced name is retrieved by its whole path."""
    surface = Surface(FEATURE, names=["org/model-7b", "/srv/models/tiny"])
    for target in ("/v1/models/org/model-7b", "/v1/models/org%2Fmodel-7b"):
        assert surface.ask("GET", target).json()["id"] == "org/model-7b"
    assert (
        surface.ask("GET", "/v1/models/%2Fsrv%2Fmodels%2Ftiny").json()["id"] == "/srv/models/tiny"
    )


def test_unknown_model_is_not_found() -> None:
    """Retrieve answers only what a backend serves."""
    error = Surface(FEATURE).refusal("GET", "/v1/models/nothing")
    assert (error.status, error.reason, error.param) == (404, "model_not_found", "model")
