"""No bytes a client can send make the head parser do anything but answer or refuse."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tpo_mp.http.endpoints import Endpoint, EndpointTable
from tpo_mp.http.head import BadHead, parse

TABLE = EndpointTable(
    [
        Endpoint("GET", "/v1/models/{model}", lambda _exchange: None, "openai"),
        Endpoint("POST", "/v1/prompt", lambda _exchange: None, "native"),
    ]
)
LINES = st.sampled_from(
    [b"Host: a", b"Content-Length: 4", b"Transfer-Encoding: chunked", b"X-Session-Id: s",
     b"Connection: close", b"Upgrade: websocket", b"Content-Type: application/json", b" x", b":"]
)  # fmt: skip
FIRST = st.sampled_from(
    [b"GET /v1/models/a HTTP/1.1", b"POST /v1/prompt HTTP/1.0", b"POST /v1/prompt HTTP/1.1"]
)


def judge(raw: bytes) -> None:
    """Parse; whatever is accepted keeps the promises every handler relies on."""
    refused = 0
    try:
        head = parse(raw, TABLE, 1 << 20)
    except BadHead as e:
        refused = e.status
    if refused:
        assert 400 <= refused <= 505
        return
    assert 0 <= head.content_length < 10**12
    assert (head.endpoint is None) <= (head.refusal is not None)
    assert b"host" in head.headers or head.version_10
    assert not (b"content-length" in head.headers and b"transfer-encoding" in head.headers)
    assert not any(set(b"\r\n\0") & set(value) for value in head.headers.values())
    assert head.path.startswith("/")
    assert "\0" not in head.path


@given(st.binary(max_size=200))
def test_noise(noise: bytes) -> None:
    """Random bytes."""
    judge(noise + b"\r\n\r\n")


@given(FIRST, st.lists(st.one_of(LINES, st.binary(max_size=30)), max_size=8))
def test_heads_of_odd_lines(first: bytes, lines: list[bytes]) -> None:
    """A good start and anything after it."""
    judge(b"\r\n".join([first, *lines]) + b"\r\n\r\n")


@given(FIRST, st.lists(LINES, max_size=5), st.integers(0, 200), st.binary(min_size=1, max_size=3))
def test_damaged_heads(first: bytes, lines: list[bytes], at: int, damage: bytes) -> None:
    """A few bytes over-written anywhere."""
    raw = b"\r\n".join([first, *lines])
    at %= len(raw)
    judge(raw[:at] + damage + raw[at + len(damage) :] + b"\r\n\r\n")
