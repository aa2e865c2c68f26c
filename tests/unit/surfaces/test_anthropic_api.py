"""The Anthropic surface: what becomes a call, and what clients get back."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.support.dialects import PLAIN
from tests.support.fake_gateway import Surface, whole
from tests.support.fake_net import HeldStream
from tpo_mp.errors import BackendFailure, NotFound, RateLimited, Shed, TpoError
from tpo_mp.surfaces.anthropic_api import FEATURE
from tpo_mp.types import Dialect, Reply, Terminal

MESSAGES = "/v1/messages"
BODY = PLAIN["anthropic_messages"]
COMPLETE = {"model": "m", "prompt": "\n\nHuman: hi\n\nAssistant:", "max_tokens_to_sample": 9}


@pytest.mark.parametrize(
    ("path", "body", "dialect"),
    [
        (MESSAGES, BODY, Dialect.ANTHROPIC_MESSAGES),
        (
            f"{MESSAGES}/count_tokens",
            {"model": "m", "messages": BODY["messages"]},
            Dialect.ANTHROPIC_COUNT,
        ),
        ("/v1/complete", COMPLETE, Dialect.ANTHROPIC_COMPLETE),
    ],
)
def test_each_route_becomes_one_call_with_its_body_untouched(
    path: str, body: dict[str, Any], dialect: Dialect
) -> None:
    """Unknown fields reach the pipeline as they came."""
    surface = Surface(FEATURE)
    sent = body | {"x_unknown": {"a": [1]}}
    surface.ask("POST", path, sent)
    (delivery,) = surface.gateway.submitted
    assert json.loads(delivery.call.body) == sent
    assert (delivery.call.model, delivery.call.dialect) == ("m", dialect)
    assert not delivery.call.stream


def test_routing_fields_are_stripped() -> None:
    """A client cannot choose the upstream."""
    surface = Surface(FEATURE)
    surface.ask("POST", MESSAGES, BODY | {"api_base": "http://evil.example", "api_key": "k"})
    assert json.loads(surface.gateway.submitted[0].call.body) == BODY


def test_version_and_betas_go_upstream_and_the_key_does_not() -> None:
    """Only these two of the client's headers are forwarded."""
    surface = Surface(FEATURE)
    headers = {
        "anthropic-version": "2023-06-01",
        "anthropic-beta": "a,b",
        "x-api-key": "k",
        "x-y": "1",
    }
    surface.ask("POST", MESSAGES, BODY, headers)
    forward = surface.gateway.submitted[0].call.forward
    assert forward == b"anthropic-version: 2023-06-01\r\nanthropic-beta: a,b\r\n"


def test_affinity_is_the_user_of_the_body() -> None:
    """The only key this API has."""
    surface = Surface(FEATURE)
    surface.ask("POST", MESSAGES, BODY | {"metadata": {"user_id": "u"}})
    assert surface.gateway.affinities == ["u"]


@pytest.mark.parametrize(
    ("field", "value"),
    [("max_tokens", "many"), ("temperature", 9), ("messages", []), ("model", None), ("top_k", -1)],
)
def test_bad_field_is_refused_by_name(field: str, value: Any) -> None:
    """Before anything is asked upstream."""
    error = Surface(FEATURE).refusal("POST", MESSAGES, BODY | {field: value})
    assert error.status == 400
    assert field in (error.param or "")


def test_missing_limit_is_refused() -> None:
    """``max_tokens`` is no option here."""
    error = Surface(FEATURE).refusal("POST", MESSAGES, {k: BODY[k] for k in ("model", "messages")})
    assert "max_tokens" in error.message


def test_whole_reply_carries_the_id_this_sdk_reads() -> None:
    """``request-id`` beside our own headers."""
    surface = Surface(FEATURE)
    exchange = surface.ask("POST", MESSAGES, BODY)
    surface.gateway.submitted[0].done(whole(b'{"id":"msg_1"}'), None)
    assert (exchange.status, exchange.answer) == (200, b'{"id":"msg_1"}')
    assert exchange.extra.startswith(b"request-id: call-1\r\n")
    assert b"x-tpo-call-id: call-1\r\n" in exchange.extra
    assert surface.gateway.ends == [Terminal.DONE]


@pytest.mark.parametrize(
    ("error", "status", "kind"),
    [
        (RateLimited("slow down", retry_after_s=2), 429, "rate_limit_error"),
        (NotFound("no such model", param="model"), 404, "not_found_error"),
        (Shed("full"), 529, "overloaded_error"),
        (BackendFailure("broken"), 502, "api_error"),
    ],
)
def test_error_is_answered_in_the_dialect(error: TpoError, status: int, kind: str) -> None:
    """Status, envelope and id are what this SDK reads."""
    surface = Surface(FEATURE)
    exchange = surface.ask("POST", MESSAGES, BODY)
    surface.gateway.submitted[0].done(None, error)
    answer = exchange.json()
    assert (exchange.status, answer["type"], answer["error"]["type"]) == (status, "error", kind)
    assert error.message in answer["error"]["message"]
    assert answer["request_id"] == "call-1"


def test_broken_stream_ends_in_the_error_event() -> None:
    """Never just silence, never ``message_stop``."""
    surface, held = Surface(FEATURE), HeldStream()
    exchange = surface.ask("POST", MESSAGES, BODY | {"stream": True})
    reply = Reply(200, None, stream=held, content_type=b"text/event-stream")
    surface.gateway.submitted[0].done(reply, None)
    held.data(b"event: ping\ndata: {}\n\n")
    held.end(BackendFailure("upstream broke"))
    assert exchange.ended
    assert b"event: error\n" in exchange.answer
    assert surface.gateway.ends == [Terminal.FAILED]
