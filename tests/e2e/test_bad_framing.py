"""Requests whose bytes cannot be trusted, and what they must get.

Each raw request is sent twice: alone, and behind a chunked request, which the full lane answers.
A refusal is one response and a closed connection: a second response would be a smuggled request's.
The shared gateway's own end checks that nothing of this left a traceback.
"""

from __future__ import annotations

import json
from dataclasses import dataclass

import pytest

from tests.support.gateway import Gateway
from tests.support.messages import BODY, CHAT, CHUNKED, HOST, LENGTH, chunked, get, post
from tests.support.raw import ClosedEarlyError, RawClient, RawReply, build, chat, parse_head

SMUGGLED = b"GET /smuggled HTTP/1.1\r\nHost: localhost\r\n\r\n"


@dataclass(frozen=True, slots=True)
class Bad:
    """A raw request whose framing cannot be trusted: answered with one of ``statuses``, closed."""

    id: str
    raw: bytes
    statuses: tuple[int, ...] = (400,)
    may_just_close: bool = False


FRAMING = [
    Bad("length and coding", post(LENGTH, CHUNKED, body=b"0\r\n\r\n" + SMUGGLED)),
    Bad("coding and length", post(CHUNKED, b"Content-Length: 3", body=b"0\r\n\r\n" + SMUGGLED)),
    Bad("two equal lengths", post(LENGTH, LENGTH)),
    Bad("two lengths", post(LENGTH, b"Content-Length: 0", body=BODY + SMUGGLED)),
    Bad("length list", post(b"Content-Length: 4, 4", body=b"true")),
    Bad("length with plus", post(b"Content-Length: +4", body=b"true")),
    Bad("negative length", post(b"Content-Length: -4", body=b"true")),
    Bad("hexadecimal length", post(b"Content-Length: 0x4", body=b"true")),
    Bad("length in other digits", post("Content-Length: ٤".encode(), body=b"true")),
    Bad("length overflow", post(b"Content-Length: 99999999999999999999"), (400, 413)),
    Bad("empty length", post(b"Content-Length: ", body=b"true")),
    Bad("unknown coding", post(b"Transfer-Encoding: xchunked", body=chunked())),
    Bad("chunked not last", post(b"Transfer-Encoding: chunked, identity", body=chunked())),
    Bad("chunked twice", post(b"Transfer-Encoding: chunked, chunked", body=chunked())),
    Bad("two codings", post(CHUNKED, b"Transfer-Encoding: identity", body=chunked())),
    Bad("coding with vertical tab", post(b"Transfer-Encoding: \x0bchunked", body=chunked())),
    Bad("bare line feeds", get().replace(b"\r\n", b"\n")),
    Bad("one bare line feed", b"GET /v1/models HTTP/1.1\nHost: localhost\r\n\r\n"),
    Bad("folded header", get(b"/v1/models", b"X-Folded: a", b" b")),
    Bad("space before colon", get(b"/v1/models", b"X-Name : a")),
    Bad("space before the first name", b"GET /v1/models HTTP/1.1\r\n Host: localhost\r\n\r\n"),
    Bad("no header name", get(b"/v1/models", b": value")),
    Bad("no colon", get(b"/v1/models", b"X-Nothing")),
    Bad("NUL in a value", get(b"/v1/models", b"X-Zero: a\x00b")),
    Bad("NUL in a name", get(b"/v1/models", b"X-Ze\x00ro: a")),
    Bad("CR in a value", get(b"/v1/models", b"X-Return: a\rX-Injected: b")),
    Bad("negative chunk", post(CHUNKED, body=b"-1\r\n\r\n0\r\n\r\n")),
    Bad("chunk size overflow", post(CHUNKED, body=b"FFFFFFFFFFFFFFFFF\r\n" + BODY), (400, 413)),
    Bad("chunk size not hexadecimal", post(CHUNKED, body=b"zz\r\n" + BODY)),
    Bad("chunk longer than its size", post(CHUNKED, body=b"3\r\n" + chunked())),
    Bad("chunk with bare line feed", post(CHUNKED, body=chunked().replace(b"\r\n", b"\n"))),
    Bad(
        "300 trailers",
        post(CHUNKED, body=chunked()[:-2] + b"X-T: y\r\n" * 300 + b"\r\n"),
        (400, 431),
    ),
    Bad("coding in HTTP/1.0", post(CHUNKED, body=chunked()).replace(b"HTTP/1.1", b"HTTP/1.0")),
    Bad("no host", b"GET /v1/models HTTP/1.1\r\n\r\n"),
    Bad("two hosts", get(b"/v1/models", b"Host: other")),
    Bad("host with a path", get().replace(b"localhost", b"a/health?x=")),
    Bad("host with a user", get().replace(b"localhost", b"user@localhost")),
    Bad("host with a space", get().replace(b"localhost", b"a b")),
    Bad("empty host", get().replace(b"localhost", b"")),
    Bad("200 headers", get(b"/v1/models", *[b"X-%d: y" % i for i in range(200)]), (400, 431)),
    Bad("9 KiB request line", get(b"/" + b"a" * 9216), (400, 414)),
    Bad("9 KiB header", get(b"/v1/models", b"X-Long: " + b"a" * 9216), (400, 431)),
    Bad(
        "64 KiB of header",
        get(b"/v1/models", *[b"X-%d: " % i + b"y" * 4096 for i in range(16)]),
        (400, 431),
    ),
    Bad("absolute form", get(b"http://evil.example/v1/models")),
    Bad(
        "authority form",
        b"CONNECT evil.example:443 HTTP/1.1\r\nHost: evil.example:443\r\n\r\n",
        (400, 405, 501),
    ),
    Bad("asterisk form", b"OPTIONS * HTTP/1.1\r\n" + HOST + b"\r\n"),
    Bad("fragment in the target", get(b"/v1/models#x")),
    Bad("NUL in the target", get(b"/v1/models\x00")),
    Bad("encoded NUL in the path", get(b"/v1/models%00")),
    Bad("over-long UTF-8 in the path", get(b"/%c0%ae%c0%ae/admin")),
    Bad("raw bytes in the target", get(b"/v1/\xff\xfe")),
    Bad("two spaces in the request line", b"GET  /v1/models HTTP/1.1\r\n" + HOST + b"\r\n"),
    Bad("tab in the request line", b"GET\t/v1/models\tHTTP/1.1\r\n" + HOST + b"\r\n"),
    Bad("lower-case method", get().replace(b"GET", b"get"), (400, 405)),
    Bad("1 kB method", get().replace(b"GET", b"G" * 1024)),
    Bad("method with a slash", get().replace(b"GET", b"G/T")),
    Bad("HTTP/0.9", b"GET /v1/models\r\n\r\n"),
    Bad("HTTP/2.0 in a 1.x line", get(version=b"HTTP/2.0"), (400, 505)),
    Bad("HTTP/1.2", get(version=b"HTTP/1.2"), (400, 505)),
    Bad("HTTP/9.9", get(version=b"HTTP/9.9"), (400, 505)),
    Bad("HTTP/2 preface", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(9), (400, 505)),
    Bad(
        "TLS hello",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(40),
        may_just_close=True,
    ),
    Bad("unknown expectation", post(LENGTH, b"Expect: 200-ok"), (400, 417)),
]


def one_refusal(client: RawClient, case: Bad) -> None:
    """Read to the end: exactly one response, of an expected status."""
    try:
        answer = client.read_to_end()
    except TimeoutError:
        pytest.fail(f"{case.id}: the connection stays open")
    if not answer and case.may_just_close:
        return
    head, _, rest = answer.partition(b"\r\n\r\n")
    status, headers = parse_head(head + b"\r\n\r\n")
    assert status in case.statuses, answer
    assert len(rest) == int(headers["content-length"]), answer


@pytest.mark.parametrize("case", FRAMING, ids=lambda case: case.id)
def test_untrustworthy_request_is_refused_once_and_closed(echo_gateway: Gateway, case: Bad) -> None:
    """On a fresh connection."""
    with RawClient(echo_gateway.url, timeout_s=5) as client:
        client.send(case.raw)
        one_refusal(client, case)


@pytest.mark.parametrize("case", FRAMING, ids=lambda case: case.id)
def test_nothing_behind_a_full_lane_request_is_served(echo_gateway: Gateway, case: Bad) -> None:
    """Behind a good chunked request in the same write: an answer or a refusal, then the end."""
    with RawClient(echo_gateway.url, timeout_s=5) as client:
        client.send(post(CHUNKED, body=chunked()) + case.raw)
        assert client.read_reply().status in (200, 400)
        assert client.closed(), f"{case.id}: more is answered, or the connection stays open"


@pytest.mark.parametrize("length", [20 << 10, 1 << 20])
def test_long_chunk_extensions_are_bounded(echo_gateway: Gateway, length: int) -> None:
    """An extension is refused or skipped; the wait for its end is bounded by the body timeout."""
    with RawClient(echo_gateway.url, timeout_s=5) as client:
        client.send(
            post(CHUNKED, body=chunked().replace(b"\r\n", b";x=" + b"y" * length + b"\r\n", 1))
        )
        reply = client.read_reply()
    assert reply.status in (200, 400, 413), reply


def test_half_a_million_one_byte_chunks_are_refused(echo_gateway: Gateway) -> None:
    """Chunks that are all overhead end the request early."""
    with RawClient(echo_gateway.url) as client:
        client.send(post(CHUNKED, body=b"1\r\n \r\n" * 500_000 + chunked()))
        assert client.read_reply().status == 400
        assert client.closed()


def test_pipelined_requests_are_answered_in_order(echo_gateway: Gateway) -> None:
    """Thirty-two requests in one write get thirty-two answers, in order."""
    with RawClient(echo_gateway.url) as client:
        client.send(
            b"".join(
                build("POST", CHAT, {"Host": "x", "Content-Type": "application/json"},
                      json.dumps(chat(f"number {i}")).encode())
                for i in range(32)
            )
        )  # fmt: skip
        texts = [client.read_reply().json()["choices"][0]["message"]["content"] for _ in range(32)]
    assert texts == [f"number {i}" for i in range(32)]


def test_a_flood_of_pipelined_requests_ends_or_is_served(echo_gateway: Gateway) -> None:
    """Ten thousand at once are answered in order or cut off; the gateway lives on."""
    with RawClient(echo_gateway.url) as client:
        client.send(get() * 10_000)
        answered = 0
        try:
            while answered < 10_000:
                assert client.read_reply().status == 200
                answered += 1
        except ClosedEarlyError:
            pass
    assert echo_gateway.ask("/v1/models").status == 200


METHODS = [
    ("TRACE", CHAT),
    ("PUT", CHAT),
    ("DELETE", CHAT),
    ("GET", CHAT),
    ("PATCH", "/v1/models"),
    ("POST", "/v1/models"),
]


LANES = ["fast", "full"]


def on_lane(gateway: Gateway, lane: str, method: str, target: str) -> RawReply:
    """One request without a body, or with an empty chunked one, which the full lane takes."""
    coding = CHUNKED + b"\r\n" if lane == "full" else b""
    body = b"0\r\n\r\n" if lane == "full" else b""
    line = f"{method} {target} HTTP/1.1\r\n".encode()
    with RawClient(gateway.url) as client:
        client.send(line + HOST + coding + b"\r\n" + body)
        return client.read_reply(method)


@pytest.mark.parametrize("lane", LANES)
@pytest.mark.parametrize(("method", "target"), METHODS)
def test_other_methods_are_405(echo_gateway: Gateway, lane: str, method: str, target: str) -> None:
    """A known path with a foreign method says so."""
    assert on_lane(echo_gateway, lane, method, target).status == 405


SPELLINGS = [
    "//v1//models", "/v1//models", "/v1/models;x", "/v1/models.", "/v1/models/.", "/v1/./models",
    "/v1/../v1/models", "/v1/%2e%2e/v1/models", "/v1%2fmodels/", "/V1/MODELS", "/v1/models%20",
    "/v1/models%0a", "/v1/models\\", "/v1/models%2f", "/v1/models%3f", "/.", "/v1",
]  # fmt: skip


@pytest.mark.parametrize("lane", LANES)
@pytest.mark.parametrize("target", SPELLINGS)
def test_other_spellings_of_a_path_are_other_paths(
    echo_gateway: Gateway, lane: str, target: str
) -> None:
    """No normalising: a route is matched literally, so a permission cannot be spelled around."""
    reply = on_lane(echo_gateway, lane, "GET", target)
    assert reply.status == 404, reply


def test_expectation_gets_its_final_answer_without_continue(echo_gateway: Gateway) -> None:
    """A request that is refused anyway is refused before its body is asked for."""
    with RawClient(echo_gateway.url) as client:
        client.send(post(b"Content-Length: %d" % (33 << 20), b"Expect: 100-continue", body=b""))
        assert client.read_reply().status == 413
    with RawClient(echo_gateway.url) as client:
        client.send(
            b"POST /nowhere HTTP/1.1\r\n"
            + HOST
            + b"Expect: 100-continue\r\nContent-Length: 5\r\n\r\n"
        )
        assert client.read_reply().status == 404


def test_expectation_that_is_met_gets_continue_then_an_answer(echo_gateway: Gateway) -> None:
    """100 first, then the body is read and answered."""
    with RawClient(echo_gateway.url) as client:
        client.send(post(LENGTH, b"Expect: 100-continue", body=b""))
        assert client.read_head()[0] == 100
        client.send(BODY)
        assert client.read_reply().status == 200


@pytest.mark.parametrize("lane", LANES)
def test_queries_are_bounded(echo_gateway: Gateway, lane: str) -> None:
    """Long or countless query strings are refused, odd ones ignored."""
    for query, statuses in (
        ("a=" + "b" * 9000, (400, 414)),
        ("&".join(f"p{i}=1" for i in range(1000)), (400, 414)),
        ("&".join("p" for _ in range(4000)), (400, 414)),
        ("a=1&a=2&a=3", (200,)),
        ("a=%00", (200, 400)),
        ("=&=&&", (200,)),
    ):
        reply = on_lane(echo_gateway, lane, "GET", f"/v1/models?{query}")
        assert reply.status in statuses, query[:40]


def test_range_and_h2c_are_ignored(echo_gateway: Gateway) -> None:
    """Offers we do not take leave the answer as it is."""
    for headers in (
        {"Range": "bytes=0-1"},
        {"Connection": "Upgrade, HTTP2-Settings", "Upgrade": "h2c", "HTTP2-Settings": "AAMAAABk"},
    ):
        with RawClient(echo_gateway.url) as client:
            reply = client.request("GET", "/v1/models", headers)
        assert reply.status == 200
        assert reply.json()["object"] == "list"
