"""Upstream errors of either family as our own."""

from __future__ import annotations

import json

import pytest

from tpo_mp.dialects.failure import of_object, upstream_error
from tpo_mp.errors import BackendFailure, BackendTimeout, InvalidRequest, RateLimited, Rejected


@pytest.mark.parametrize(
    ("status", "kind", "retryable"),
    [
        (400, InvalidRequest, False),
        (401, Rejected, False),
        (404, Rejected, False),
        (408, BackendTimeout, True),
        (429, RateLimited, True),
        (500, BackendFailure, True),
        (503, BackendFailure, True),
        (504, BackendTimeout, True),
        (529, BackendFailure, True),
    ],
)
def test_the_status_decides_the_class(status: int, kind: type, retryable: bool) -> None:
    """Retry, breaker and client see what the upstream's status means."""
    error = upstream_error(b'{"error":{"message":"no","type":"x"}}', status)
    assert type(error) is kind
    assert error.retryable is retryable
    assert error.message == "no"


def test_field_and_code_survive() -> None:
    """OpenAI names the field and a code."""
    body = {"error": {"message": "bad", "type": "invalid_request_error", "param": "n", "code": "c"}}
    error = upstream_error(json.dumps(body).encode(), 400)
    assert (error.param, error.reason) == ("n", "c")


@pytest.mark.parametrize("body", [b"", b"<html>", b"[]", b"5", b'{"error":5}', b'{"error":null}'])
def test_any_body_is_some_error(body: bytes) -> None:
    """Proxies answer with pages; the status is enough."""
    assert upstream_error(body, 502).message == "upstream answered 502"


def test_plain_words_are_the_message() -> None:
    """Some engines send a string."""
    assert upstream_error(b'{"error":"out of memory"}', 500).message == "out of memory"


@pytest.mark.parametrize(
    ("found", "status"),
    [
        ({"type": "overloaded_error"}, 503),
        ({"type": "rate_limit_error"}, 429),
        ({"type": "invalid_request_error"}, 400),
        ({"code": 404}, 404),
        ({"code": "rate_limit_exceeded"}, 429),
        ({"type": "mystery"}, 502),
        (None, 502),
    ],
)
def test_without_a_status_the_type_decides(found: object, status: int) -> None:
    """Errors inside a stream have no status of their own."""
    assert of_object(found).status == status


def test_messages_are_printable_and_short() -> None:
    """What an upstream says cannot break a log line or fill it."""
    error = of_object({"message": "a\nb\x1b[0m" + "x" * 1000})
    assert "\n" not in error.message
    assert "\x1b" not in error.message
    assert len(error.message) == 500
