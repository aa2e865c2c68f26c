"""What is read of an upstream's head, and what of it clients see."""

from __future__ import annotations

import pytest

from tpo_mp.http.response_head import parse_response_head

OK = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"


def test_response_head_keeps_what_clients_may_see() -> None:
    """Limits, ids and hints pass; hop-by-hop, cookies and the rest do not."""
    head = parse_response_head(
        OK
        + b"Content-Length: 2\r\nX-RateLimit-Remaining: 5\r\nRetry-After: 7\r\nSet-Cookie: a=b\r\n"
        b"OpenAI-Organization: org\r\nServer: nginx\r\nX-Internal: secret\r\n\r\n"
    )
    assert head.status == 200
    assert head.content_length == 2
    assert head.content_type == b"application/json"
    assert head.retry_after == 7.0
    lines = head.passed.lower().split(b"\r\n")
    assert b"x-ratelimit-remaining: 5" in lines
    assert b"openai-organization: org" in lines
    assert b"secret" not in head.passed
    assert b"cookie" not in head.passed.lower()


@pytest.mark.parametrize(
    ("lines", "pause"),
    [
        (b"Retry-After-Ms: 250\r\nRetry-After: 1\r\n", 0.25),
        (b"Retry-After: 1\r\nRetry-After-Ms: 250\r\n", 0.25),
        (b"Retry-After: Fri, 27 Nov 2026 12:00:00 GMT\r\n", None),
        (b"Retry-After-Ms: soon\r\n", None),
        (b"", None),
    ],
)
def test_pause_is_read_in_milliseconds_first(lines: bytes, pause: float | None) -> None:
    """As SDKs do; a date is left for them to read."""
    assert parse_response_head(OK + lines + b"Content-Length: 0\r\n\r\n").retry_after == pause


def test_passed_headers_are_bounded() -> None:
    """An upstream cannot make our heads huge."""
    lines = b"".join(b"X-RateLimit-%d: %b\r\n" % (i, b"y" * 1000) for i in range(40))
    assert len(parse_response_head(OK + lines + b"\r\n").passed) <= 8192
