"""Requests whose bytes cannot be trusted, and what they must get.

Each raw request is sent twice: alone, and behind a chunked request, which the full lane answers.
A refusal is one response and a closed connection: a second response would be a smuggled request's.
The shared gateway's own end checks that nothing of this left a traceback.
"""

from __future__ import annotations

import json

import pytest

from tests.support.framing import FRAMING, Bad
from tests.support.gateway import Gateway
from tests.support.messages import BODY, CHAT, CHUNKED, HOST, LENGTH, chunked, get, post
from tests.support.raw import ClosedEarlyError, RawClient, RawReply, build, chat, parse_head


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
    with RawClient(echo_gateway.url) as client:
        client.send(case.raw)
        one_refusal(client, case)


@pytest.mark.parametrize("case", FRAMING, ids=lambda case: case.id)
def test_nothing_behind_a_full_lane_request_is_served(echo_gateway: Gateway, case: Bad) -> None:
    """Behind a good chunked request in the same write: an answer or a refusal, then the end."""
    with RawClient(echo_gateway.url) as client:
        client.send(post(CHUNKED, body=chunked()) + case.raw)
        assert client.read_reply().status in (200, 400)
        assert client.closed(), f"{case.id}: more is answered, or the connection stays open"


@pytest.mark.parametrize("length", [20 << 10, 1 << 20])
def test_long_chunk_extensions_are_bounded(echo_gateway: Gateway, length: int) -> None:
    """An extension is refused or skipped; the wait for its end is bounded by the body timeout."""
    with RawClient(echo_gateway.url) as client:
        client.send(
            post(CHUNKED, body=chunked().replace(b"\r\n", b";x=" + b"y" * length + b"\r\n", 1))
        )
        reply = client.read_reply()
    assert reply.status in (200, 400, 413), reply


BROKEN_CHUNKS = {
    "too long a size": b"F" * 17 + b"\r\n",
    "a negative size": b"-5\r\nhello\r\n",
    "a bare line feed": b"5\nhello\n0\n\n",
    "more than its size": b"5\r\nhello, world\r\n0\r\n\r\n",
}


@pytest.mark.parametrize("apart", [False, True], ids=["one read", "two reads"])
@pytest.mark.parametrize("body", BROKEN_CHUNKS.values(), ids=BROKEN_CHUNKS)
def test_chunks_that_are_none_are_refused_as_everything_else_is(
    echo_gateway: Gateway, body: bytes, apart: bool
) -> None:
    """In our envelope, without what the client sent, and the connection closes.

    Who was told to go on is being read from: such chunks end a read that waits for them.
    """
    with RawClient(echo_gateway.url) as client:
        if apart:
            client.send(post(CHUNKED, b"Expect: 100-continue", body=b"1\r\n{\r\n"))
            assert client.read_until(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
            client.send(body)
        else:
            client.send(post(CHUNKED, body=body))
        reply = client.read_reply()
        assert client.closed()
    assert reply.status == 400, reply
    assert reply.head.startswith(b"HTTP/1.1 400 "), reply
    assert reply.headers["content-type"] == "application/json"
    assert reply.headers["x-request-id"]
    error = reply.json()["error"]
    assert error["code"] == "bad_request"
    assert error["message"] == "the body's framing is malformed"


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
