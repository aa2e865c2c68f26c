"""The Gemini surface: paths with a method, keys, streams as events and as one array."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.support.fake_gateway import Surface
from tests.support.fake_net import HeldStream
from tpo_mp.errors import BackendFailure
from tpo_mp.surfaces.gemini_api import FEATURE
from tpo_mp.types import Dialect, Reply, Terminal

BODY: dict[str, Any] = {"contents": [{"parts": [{"text": "hi"}]}]}
AT = "/v1beta/models/gemini-2.5-flash"


@pytest.mark.parametrize(
    ("path", "dialect", "stream"),
    [
        (f"{AT}:generateContent", Dialect.GEMINI, False),
        ("/v1/models/gemini-2.5-flash:generateContent", Dialect.GEMINI, False),
        (f"{AT}:streamGenerateContent?alt=sse", Dialect.GEMINI, True),
        (f"{AT}:streamGenerateContent", Dialect.GEMINI, True),
        (f"{AT}:countTokens", Dialect.GEMINI_COUNT, False),
        (f"{AT}:embedContent", Dialect.GEMINI_EMBEDDINGS, False),
    ],
)
def test_the_path_names_model_and_method(path: str, dialect: Dialect, stream: bool) -> None:
    """Both go into the body that the backend reads."""
    surface = Surface(FEATURE)
    surface.ask("POST", path, BODY)
    (delivery,) = surface.gateway.submitted
    call = delivery.call
    assert (call.model, call.dialect, call.stream) == ("gemini-2.5-flash", dialect, stream)
    body = json.loads(call.body)
    assert body.pop("model") == "gemini-2.5-flash"
    assert body.pop("stream", False) is stream
    assert body == BODY


@pytest.mark.parametrize("target", ["x-goog-api-key", "?key=k1"])
def test_a_key_may_be_in_a_header_or_the_query(target: str) -> None:
    """Whoever counts by key finds it where other keys are."""
    surface = Surface(FEATURE)
    query = target if target[0] == "?" else ""
    headers = {} if query else {target: "k1"}
    surface.ask("POST", f"{AT}:generateContent{query}", BODY, headers)
    assert surface.gateway.submitted[0].call.authorization == b"Bearer k1"


@pytest.mark.parametrize("path", [f"{AT}:explode", AT, "/v1beta/models/:generateContent"])
def test_an_unknown_method_is_not_found(path: str) -> None:
    """Whatever the model."""
    assert Surface(FEATURE).refusal("POST", path, BODY).status == 404


def test_models_come_in_pages() -> None:
    """The token of one page is the beginning of the next."""
    surface = Surface(FEATURE)
    whole = surface.ask("GET", "/v1beta/models").json()["models"]
    first = surface.ask("GET", "/v1beta/models?pageSize=1").json()
    assert first["models"] == whole[:1]
    assert all(model["name"].startswith("models/") for model in whole)
    assert surface.refusal("GET", "/v1beta/models?pageToken=x").param == "pageToken"


def stream(surface: Surface, path: str) -> tuple[Any, HeldStream]:
    """A stream that has begun, and its exchange."""
    held = HeldStream()
    exchange = surface.ask("POST", path, BODY)
    reply = Reply(200, None, stream=held, content_type=b"text/event-stream")
    surface.gateway.submitted[0].done(reply, None)
    return exchange, held


def test_a_stream_without_sse_is_one_json_array() -> None:
    """However its events are cut on the way."""
    surface = Surface(FEATURE)
    exchange, held = stream(surface, f"{AT}:streamGenerateContent")
    for chunk in (b'data: {"a":', b'1}\r\n\r\ndata: {"b":2}\r\n', b"\r\n"):
        held.data(chunk)
    held.end(None)
    assert exchange.ended
    assert exchange.content_type.startswith(b"application/json")
    assert json.loads(exchange.answer) == [{"a": 1}, {"b": 2}]
    assert surface.gateway.ends == [Terminal.DONE]


def test_an_error_in_mid_array_is_its_last_element() -> None:
    """The array still ends."""
    surface = Surface(FEATURE)
    exchange, held = stream(surface, f"{AT}:streamGenerateContent")
    held.data(b'data: {"a":1}\r\n\r\n')
    held.end(BackendFailure("broke", status=500))
    first, last = json.loads(exchange.answer)
    assert first == {"a": 1}
    assert last["error"]["status"] == "INTERNAL"
    assert surface.gateway.ends == [Terminal.FAILED]
