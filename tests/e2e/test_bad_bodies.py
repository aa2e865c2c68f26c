"""Well-framed requests with bad contents, through both lanes, and what they must get.

The shared gateway's own end checks that nothing of this left a traceback.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import StartGateway
from tests.support.gateway import Gateway
from tests.support.messages import (
    BODY,
    CHAT,
    CHUNKED,
    HOST,
    LENGTH,
    ask_on,
    chunked,
    error_of,
    post,
)  # fmt: skip
from tests.support.raw import RawClient, chat
from tests.support.upstream import Upstream

CHAT_TEXT = BODY.decode()
NOT_JSON = {
    "empty": b"",
    "null": b"null",
    "array": b"[]",
    "number": b"7",
    "text": b'"hello"',
    "200 000 nested arrays": b'{"model":"echo","messages":'
    + b"[" * 200_000
    + b"]" * 200_000
    + b"}",
    "3 000 nested arrays in an unread field": (
        BODY[:-1] + b',"extra":' + b"[" * 3000 + b"]" * 3000 + b"}"
    ),
    "4 million digits": BODY[:-1] + b',"max_tokens":' + b"9" * 4_000_000 + b"}",
    "NaN": BODY[:-1] + b',"temperature":NaN}',
    "Infinity": BODY[:-1] + b',"temperature":Infinity}',
    "1e999": BODY[:-1] + b',"temperature":1e999}',
    "byte order mark": b"\xef\xbb\xbf" + BODY,
    "UTF-16": CHAT_TEXT.encode("utf-16"),
    "invalid UTF-8": BODY.replace(b"hello", b"\xff\xfe"),
    "lone surrogate": BODY.replace(b"hello", rb"\ud800"),
    "trailing garbage": BODY + b"}",
    "two values": BODY + BODY,
    "cut short": BODY[:-3],
    "single quotes": BODY.replace(b'"', b"'"),
    "a million small objects": b'{"model":"echo","messages":[' + b"{}," * 1_000_000 + b"{}]}",
}


@pytest.mark.parametrize("lane", ["fast", "full"])
@pytest.mark.parametrize("body", NOT_JSON.values(), ids=NOT_JSON.keys())
def test_bad_json_is_a_400_with_an_error_body(
    echo_gateway: Gateway, lane: str, body: bytes
) -> None:
    """Whatever a parser trips over is the client's error, said in JSON."""
    reply = ask_on(echo_gateway.url, lane, body)
    assert reply.status == 400, reply.body[:300]
    assert error_of(reply)["type"] == "invalid_request_error"


WRONG_VALUES: list[tuple[str, Any]] = [
    ("model", 7),
    ("model", None),
    ("model", ""),
    ("messages", {}),
    ("messages", []),
    ("messages", "hello"),
    ("messages", [7]),
    ("messages", [{"content": "no role"}]),
    ("messages", [{"role": "user", "content": 7}]),
    ("messages", [{"role": 7, "content": "x"}]),
    ("stream", "yes"),
    ("stream", 1),
    ("max_tokens", -1),
    ("max_tokens", 0),
    ("max_tokens", 10**9),
    ("max_tokens", 1.5),
    ("max_tokens", "many"),
    ("temperature", "hot"),
    ("temperature", -1),
    ("temperature", 2.5),
    ("top_p", 2),
    ("n", 10**6),
    ("n", 0),
    ("stop", ["x"] * 1000),
    ("stop", {"x": 1}),
    ("stream_options", "usage"),
    ("user", 7),
]


@pytest.mark.parametrize("lane", ["fast", "full"])
@pytest.mark.parametrize(("field", "value"), WRONG_VALUES, ids=lambda v: str(v)[:24])
def test_wrong_type_or_range_names_the_field(
    echo_gateway: Gateway, lane: str, field: str, value: Any
) -> None:
    """A wrong value is a 400 or 422 whose ``param`` starts with the field."""
    reply = ask_on(echo_gateway.url, lane, json.dumps(chat() | {field: value}).encode())
    assert reply.status in (400, 422), reply
    assert str(error_of(reply)["param"]).startswith(field), reply.body


@pytest.mark.parametrize("field", ["model", "messages"])
def test_missing_field_is_named(echo_gateway: Gateway, field: str) -> None:
    """What is required and absent is named."""
    body = chat()
    del body[field]
    reply = echo_gateway.ask(CHAT, body)
    assert reply.status in (400, 422)
    assert error_of(reply)["param"] == field


TEXTS = {
    "done marker": "[DONE]",
    "an event": "data: {} data: [DONE]",
    "escaped line ends": "a\\n\\ndata: [DONE]\\n\\n",
    "head end": "GET / HTTP/1.1 Host: x",
    "zero width and right-to-left": "\u200b\u202eabc\u202c\u2066x\u2069",
    "emoji": "👩‍👩‍👧‍👦 🏳️‍🌈",
    "control characters": "a\u0001\u0007\u007fb",
    "template": "{{7*7}} {% for x in y %} ${jndi:ldap://x} {0.__class__}",
    "last code point": "\U0010ffff\ufdd0",
}


@pytest.mark.parametrize("lane", ["fast", "full"])
@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS.keys())
def test_text_survives_framing(echo_gateway: Gateway, lane: str, text: str) -> None:
    """Text that looks like framing is only text, whole and streamed."""
    url = echo_gateway.url
    whole = ask_on(url, lane, json.dumps(chat(text)).encode())
    assert whole.json()["choices"][0]["message"]["content"] == text
    events = ask_on(url, lane, json.dumps(chat(text, stream=True)).encode()).events
    assert events[-1] == b"[DONE]"
    deltas = [json.loads(event)["choices"][0]["delta"] for event in events[:-1]]
    assert "".join(delta.get("content", "") for delta in deltas) == text


def test_line_ends_in_text_do_not_end_an_event(echo_gateway: Gateway) -> None:
    """Real CR, LF and blank lines inside a message leave the stream's events well-formed."""
    reply = echo_gateway.ask(CHAT, chat("a\r\n\r\ndata: [DONE]\n\nb", stream=True))
    assert reply.events[-1] == b"[DONE]"
    assert all(json.loads(event) for event in reply.events[:-1])


@pytest.mark.parametrize("lane", ["fast", "full"])
def test_large_inputs_are_answered_or_refused(echo_gateway: Gateway, lane: str) -> None:
    """A 3 MiB message is served; absurd counts and names are refused, not crashed on."""
    url = echo_gateway.url
    large = ask_on(url, lane, json.dumps(chat("x" * (3 << 20))).encode())
    assert large.status == 200
    assert len(large.json()["choices"][0]["message"]["content"]) == 3 << 20
    many = chat() | {"messages": [{"role": "user", "content": "x"}] * 10_001}
    assert ask_on(url, lane, json.dumps(many).encode()).status == 400
    name = ask_on(url, lane, json.dumps(chat(model="m" * (1 << 20))).encode())
    assert name.status in (400, 404)
    assert len(name.body) < 4096


SESSIONS = {
    "empty": b"",
    "10 kB": b"a" * 8000,
    "raw bytes": b"\xff\xfe",
    "wildcard": b"*",
    "subject wildcard": b"a.b.>",
    "hash tag": b"{hash}",
    "path": b"../../x",
    "space": b"x y",
    "emoji": "🙂".encode(),
    "encoded line end": b"%0d%0a",
    "129 characters": b"a" * 129,
}


@pytest.mark.parametrize("lane", ["fast", "full"])
@pytest.mark.parametrize("name", [b"X-Session-Id", b"x-litellm-session-id"])
@pytest.mark.parametrize("session", SESSIONS.values(), ids=SESSIONS.keys())
def test_unsafe_session_id_is_refused_and_not_reflected(
    echo_gateway: Gateway, lane: str, name: bytes, session: bytes
) -> None:
    """Only the safe pattern is a session id, whoever's header names it."""
    reply = ask_on(echo_gateway.url, lane, BODY, name + b": " + session)
    assert reply.status == 400, reply
    if len(session) > 3:
        assert session not in reply.head + reply.body


@pytest.mark.parametrize("lane", ["fast", "full"])
@pytest.mark.parametrize("name", [b"X-Session-Id", b"x-litellm-session-id"])
def test_two_session_ids_are_refused(echo_gateway: Gateway, lane: str, name: bytes) -> None:
    """Two headers would let two layers disagree about the session."""
    reply = ask_on(echo_gateway.url, lane, BODY, name + b": a", name + b": b")
    assert reply.status == 400


@pytest.mark.parametrize("lane", ["fast", "full"])
@pytest.mark.parametrize("value", [b"a b", b"\xffx", b"x" * 129, b"a\tb"])
def test_unsafe_request_id_is_refused_not_reflected(
    echo_gateway: Gateway, lane: str, value: bytes
) -> None:
    """A request id is echoed, so it must be safe to write into a header."""
    reply = ask_on(echo_gateway.url, lane, BODY, b"X-Request-Id: " + value)
    assert reply.status == 400
    assert value not in reply.head


MEDIA = [
    None,
    b"text/plain",
    b"application/x-www-form-urlencoded",
    b"multipart/form-data; boundary=x",
    b"application/json; charset=utf-7",
    b"application/json; charset=utf-16",
    b"application/jsonp",
    b"application/json, text/plain",
]


@pytest.mark.parametrize("lane", ["fast", "full"])
@pytest.mark.parametrize("media", MEDIA, ids=str)
def test_other_media_types_are_415(echo_gateway: Gateway, lane: str, media: bytes | None) -> None:
    """A JSON route takes JSON, said in so many words."""
    lines = HOST + (b"Content-Type: " + media + b"\r\n" if media else b"")
    framing, body = (LENGTH, BODY) if lane == "fast" else (CHUNKED, chunked())
    with RawClient(echo_gateway.url) as client:
        client.send(b"POST %b HTTP/1.1\r\n%b%b\r\n\r\n%b" % (CHAT.encode(), lines, framing, body))
        assert client.read_reply().status == 415


@pytest.mark.parametrize("lane", ["fast", "full"])
@pytest.mark.parametrize("coding", [b"gzip", b"deflate", b"br", b"zstd", b"gzip, gzip"])
def test_compressed_bodies_are_415(echo_gateway: Gateway, lane: str, coding: bytes) -> None:
    """Nothing is decompressed, so nothing can explode."""
    reply = ask_on(echo_gateway.url, lane, BODY, b"Content-Encoding: " + coding)
    assert reply.status == 415


def test_announced_oversize_is_refused_before_its_body(echo_gateway: Gateway) -> None:
    """A length over the limit is 413 at once, and the connection closes."""
    with RawClient(echo_gateway.url) as client:
        client.send(post(b"Content-Length: %d" % (33 << 20), body=b"{"))
        assert client.read_reply().status == 413
        assert client.closed()


def test_chunked_oversize_is_refused_on_the_way(start_gateway: StartGateway) -> None:
    """A chunked body is stopped at the limit, not collected."""
    gateway = start_gateway(config="[server]\nmax_body_bytes = 65536\n")
    with RawClient(gateway.url) as client:
        client.send(post(CHUNKED, body=chunked(b" " * 70_000 + BODY)))
        assert client.read_reply().status == 413
        assert client.closed()


@pytest.fixture(scope="module")
def relay(short_tmp: Path) -> Iterator[tuple[Gateway, Upstream]]:
    """A gateway in front of an upstream that records what arrives."""
    with Upstream() as upstream:
        backend = f'[[backends]]\nname = "up"\nkind = "openai"\nbase_url = "{upstream.base_url}"\n'
        with Gateway(short_tmp / "relay", config=backend) as gateway:
            yield gateway, upstream


def test_hop_by_hop_and_routing_headers_stay_here(
    relay: tuple[Gateway, Upstream],
) -> None:
    """Neither side's connection headers, nor the client's credential, cross the gateway."""
    gateway, upstream = relay
    upstream.queue(
        "answer",
        headers={
            "Connection": "X-Internal",
            "X-Internal": "1",
            "Proxy-Secret": "2",
            "Server": "up",
        },
    )
    sent = {
        "Connection": "X-Private",
        "X-Private": "1",
        "TE": "trailers",
        "Proxy-Authorization": "Basic x",
        "Authorization": "Bearer client-credential",
        "Forwarded": "for=1.2.3.4",
        "X-Forwarded-For": "1.2.3.4",
        "X-Forwarded-Host": "evil.example",
        "Keep-Alive": "timeout=5",
    }  # fmt: skip
    reply = gateway.ask(CHAT, chat("through", model="up-1"), sent)
    assert reply.status == 200
    assert not {"x-internal", "proxy-secret"} & set(reply.headers)
    seen = upstream.seen[-1].headers
    for name in sent:
        assert seen.get(name.lower()) in (None, "keep-alive"), name
    assert seen["host"] == f"127.0.0.1:{upstream.port}"


ROUTING = [
    "api_base",
    "base_url",
    "api_key",
    "api_version",
    "extra_headers",
    "timeout",
    "mock_response",
]


@pytest.mark.parametrize("field", ROUTING)
def test_body_fields_cannot_steer_the_upstream(relay: tuple[Gateway, Upstream], field: str) -> None:
    """Routing fields are stripped, other unknown ones pass untouched."""
    gateway, upstream = relay
    body = chat("steer", model="up-1") | {
        field: "http://evil.example",
        "x_unknown": [1, {"a": None}],
    }
    assert gateway.ask(CHAT, body).status == 200
    seen = upstream.seen[-1].json()
    assert field not in seen
    assert seen["x_unknown"] == [1, {"a": None}]
