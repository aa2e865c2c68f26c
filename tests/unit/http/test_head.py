"""Request heads: what is refused, what is remembered, what reaches a handler."""

from __future__ import annotations

import pytest

from tests.support.messages import get, post
from tpo_mp.errors import TpoError
from tpo_mp.http.endpoints import Endpoint, EndpointTable
from tpo_mp.http.head import MAX_HEADERS, BadHead, Head, HeadMemo, parse

TABLE = EndpointTable(
    [
        Endpoint("GET", "/v1/models", lambda _exchange: None, "openai"),
        Endpoint("GET", "/v1/models/{model}", lambda _exchange: None, "openai"),
        Endpoint("POST", "/v1/chat/completions", lambda _exchange: None, "openai",
                 max_body_bytes=0),
        Endpoint("POST", "/upload", lambda _exchange: None, "native", max_body_bytes=100,
                 takes_json=False),
    ]
)  # fmt: skip
MAX_BODY = 1 << 20


def head_of(raw: bytes) -> Head:
    """Parse the head of a raw request."""
    return parse(raw.partition(b"\r\n\r\n")[0] + b"\r\n\r\n", TABLE, MAX_BODY)


def refusal_of(raw: bytes) -> TpoError:
    """Answer the refusal of a well-framed request."""
    refusal = head_of(raw).refusal
    assert refusal is not None
    return refusal


LENGTH = b"Content-Length: 4"
CHUNKED = b"Transfer-Encoding: chunked"
UNTRUSTED: dict[str, bytes] = {
    "length and coding": post(LENGTH, CHUNKED),
    "coding and length": post(CHUNKED, LENGTH),
    "two equal lengths": post(LENGTH, LENGTH),
    "two lengths": post(LENGTH, b"Content-Length: 5"),
    "length list": post(b"Content-Length: 4, 4"),
    "length with plus": post(b"Content-Length: +4"),
    "negative length": post(b"Content-Length: -4"),
    "hexadecimal length": post(b"Content-Length: 0x4"),
    "length in other digits": post("Content-Length: ٤".encode()),
    "length with an inner blank": post(b"Content-Length: 4 4"),
    "length overflow": post(b"Content-Length: 99999999999999999999"),
    "empty length": post(b"Content-Length: "),
    "unknown coding": post(b"Transfer-Encoding: xchunked"),
    "identity coding": post(b"Transfer-Encoding: identity"),
    "chunked not last": post(b"Transfer-Encoding: chunked, identity"),
    "chunked last of two": post(b"Transfer-Encoding: gzip, chunked"),
    "chunked twice": post(b"Transfer-Encoding: chunked, chunked"),
    "two codings": post(CHUNKED, b"Transfer-Encoding: identity"),
    "empty coding": post(b"Transfer-Encoding: "),
    "quoted coding": post(b'Transfer-Encoding: "chunked"'),
    "coding with vertical tab": post(b"Transfer-Encoding: \x0bchunked"),
    "coding in HTTP/1.0": post(CHUNKED).replace(b"HTTP/1.1", b"HTTP/1.0"),
    "one bare line feed": b"GET /v1/models HTTP/1.1\nHost: a\r\n\r\n",
    "bare carriage return": b"GET /v1/models HTTP/1.1\r\nHost: a\rX: b\r\n\r\n",
    "folded header": get(b"/v1/models", b"X-Folded: a", b" b"),
    "header folded with a tab": get(b"/v1/models", b"X-Folded: a", b"\tb"),
    "space before colon": get(b"/v1/models", b"X-Name : a"),
    "space before the first name": b"GET /v1/models HTTP/1.1\r\n Host: a\r\n\r\n",
    "no header name": get(b"/v1/models", b": value"),
    "no colon": get(b"/v1/models", b"X-Nothing"),
    "name in brackets": get(b"/v1/models", b"X[0]: a"),
    "NUL in a value": get(b"/v1/models", b"X-Zero: a\x00b"),
    "NUL in a name": get(b"/v1/models", b"X-Ze\x00ro: a"),
    "CR in a value": get(b"/v1/models", b"X-Return: a\rX-Injected: b"),
    "no host": b"GET /v1/models HTTP/1.1\r\nX: y\r\n\r\n",
    "nothing but a request line": b"GET /v1/models HTTP/1.1\r\n\r\n",
    "two hosts": get(b"/v1/models", b"Host: other"),
    "host with a path": get().replace(b"localhost", b"a/health?x="),
    "host with a user": get().replace(b"localhost", b"user@localhost"),
    "host with a space": get().replace(b"localhost", b"a b"),
    "empty host": get().replace(b"localhost", b""),
    "host list": get().replace(b"localhost", b"a, b"),
    "two authorizations": get(b"/v1/models", b"Authorization: a", b"Authorization: b"),
    "too many headers": get(b"/v1/models", *[b"X-%d: y" % i for i in range(MAX_HEADERS)]),
    "9 KiB request line": get(b"/" + b"a" * 9216),
    "9 KiB header": get(b"/v1/models", b"X-Long: " + b"a" * 9216),
    "absolute form": get(b"http://evil.example/v1/models"),
    "scheme-relative host": get(b"//evil.example\\@x").replace(b"//", b"\\/"),
    "authority form": b"CONNECT evil.example:443 HTTP/1.1\r\nHost: evil.example:443\r\n\r\n",
    "asterisk form": get(b"*").replace(b"GET", b"OPTIONS"),
    "fragment in the target": get(b"/v1/models#x"),
    "NUL in the target": get(b"/v1/models\x00"),
    "encoded NUL in the path": get(b"/v1/models%00"),
    "over-long UTF-8 in the path": get(b"/%c0%ae%c0%ae/admin"),
    "raw bytes in the target": get(b"/v1/\xff\xfe"),
    "300 query parameters": get(b"/v1/models?" + b"&".join([b"a=b"] * 300)),
    "two spaces in the request line": get().replace(b"GET ", b"GET  "),
    "tabs in the request line": get().replace(b" /v1/models ", b"\t/v1/models\t"),
    "space at the line's end": get().replace(b"HTTP/1.1", b"HTTP/1.1 "),
    "lower-case method": get().replace(b"GET", b"get"),
    "1 kB method": get().replace(b"GET", b"G" * 1024),
    "method with a slash": get().replace(b"GET", b"G/T"),
    "HTTP/0.9": b"GET /v1/models\r\n\r\n",
    "HTTP/2.0 in a 1.x line": get(version=b"HTTP/2.0"),
    "HTTP/1.2": get(version=b"HTTP/1.2"),
    "HTTP/9.9": get(version=b"HTTP/9.9"),
    "lower-case protocol": get(version=b"http/1.1"),
    "no version": get(version=b"HTTP/"),
    "HTTP/2 preface": b"PRI * HTTP/2.0\r\n\r\n",
    "TLS hello": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
    "a response": b"HTTP/1.1 200 OK\r\nHost: a\r\n\r\n",
    "nothing": b"\r\n\r\n",
    "unknown expectation": post(LENGTH, b"Expect: 200-ok"),
}


@pytest.mark.parametrize("case", UNTRUSTED)
def test_head_that_cannot_be_trusted_is_refused(case: str) -> None:
    """With a 4xx or 505, before any handler; the connection closes."""
    with pytest.raises(BadHead) as refused:
        head_of(UNTRUSTED[case])
    assert refused.value.status in (400, 414, 417, 431, 505)
    assert refused.value.message.isprintable()


def test_untrusted_heads_are_never_remembered() -> None:
    """The second copy is refused as the first was."""
    memo = HeadMemo(TABLE, MAX_BODY)
    for _ in range(2):
        with pytest.raises(BadHead):
            memo.parse(b"GET / HTTP/1.1\r\n\r\n")
    assert memo.get(b"GET / HTTP/1.1\r\n\r\n") is None


def test_good_head_is_understood() -> None:
    """Method, path, query, headers in lower case, length, route."""
    head = head_of(
        post(LENGTH, b"X-Custom: A", b"x-custom: B", b"X-Request-Id: r-1", b"X-Session-Id: s:1")
    )
    assert (head.method, head.path, head.content_length) == ("POST", "/v1/chat/completions", 4)
    assert head.headers[b"x-custom"] == b"A, B"
    assert (head.request_id, head.session) == ("r-1", "s:1")
    assert head.endpoint is not None
    assert head.refusal is None
    assert head.full_lane == ""
    assert head.keep_alive
    assert not head.special


@pytest.mark.parametrize(
    ("target", "path", "query"),
    [
        (b"/v1/models?a=b&c", "/v1/models", b"a=b&c"),
        (b"/v1/models/org%2Fname", "/v1/models/org/name", b""),
        (b"/v1/models/%E2%82%AC", "/v1/models/€", b""),
        (b"/v1/models/a%20b", "/v1/models/a b", b""),
        (b"/v1/models?x=%00", "/v1/models", b"x=%00"),
    ],
)
def test_target_is_split_and_decoded_once(target: bytes, path: str, query: bytes) -> None:
    """The query stays as it came."""
    head = head_of(get(target))
    assert (head.path, head.query) == (path, query)
    assert head.refusal is None


@pytest.mark.parametrize(
    ("version", "line", "keeps"),
    [
        (b"HTTP/1.1", b"X: y", True),
        (b"HTTP/1.1", b"Connection: close", False),
        (b"HTTP/1.1", b"Connection: Upgrade, Close", False),
        (b"HTTP/1.1", b"Connection: keep-alive", True),
        (b"HTTP/1.0", b"X: y", False),
        (b"HTTP/1.0", b"Connection: keep-alive", True),
    ],
)
def test_connection_lives_as_its_version_says(version: bytes, line: bytes, keeps: bool) -> None:
    """Kept in 1.1 unless told, closed in 1.0 unless asked."""
    head = head_of(get(b"/v1/models", line, version=version))
    assert head.keep_alive is keeps
    assert head.version_10 is (version == b"HTTP/1.0")


@pytest.mark.parametrize(
    ("line", "lane"),
    [
        (CHUNKED, "chunked"),
        (b"Transfer-Encoding: Chunked", "chunked"),
        (b"Expect: 100-continue", "expect"),
        (b"Upgrade: websocket", "upgrade"),
        (b"Upgrade: h2c", ""),
    ],
)
def test_what_needs_a_whole_server_is_marked(line: bytes, lane: str) -> None:
    """Chunked bodies, expectations and upgrades are the full lane's."""
    assert head_of(post(line)).full_lane == lane


@pytest.mark.parametrize(
    ("raw", "status", "reason"),
    [
        (get(b"/nowhere"), 404, "unknown_url"),
        (get(b"/v1/chat/completions"), 405, "method_not_allowed"),
        (get(b"/v1/models").replace(b"GET", b"DELETE"), 405, "method_not_allowed"),
        (post(b"Content-Length: 1048577"), 413, "too_large"),
        (post(LENGTH).replace(b"application/json", b"text/plain"), 415, "unsupported_media_type"),
        (post(LENGTH).replace(b"application/json", b"application/json; charset=latin-1"), 415,
         "unsupported_media_type"),
        (post(LENGTH).replace(b"Content-Type: application/json\r\n", b""), 415,
         "unsupported_media_type"),
        (post(LENGTH, b"Content-Encoding: gzip"), 415, "unsupported_media_type"),
        (post(LENGTH, b"X-Request-Id: a b"), 400, "invalid_request"),
        (post(LENGTH, b"X-Request-Id: " + b"a" * 129), 400, "invalid_request"),
    ],
)  # fmt: skip
def test_well_framed_requests_are_refused_with_their_reason(
    raw: bytes, status: int, reason: str
) -> None:
    """The connection may live on: the refusal is the endpoint family's to word."""
    error = refusal_of(raw)
    assert (error.status, error.reason) == (status, reason)


@pytest.mark.parametrize(
    "value",
    [b"", b"x" * 10_000, b"\xff\xfe", b"a.b.>", b"*", b"{hash}", b"../../x", b"x y", b"%0d%0a",
     "😀".encode(), b"a/b"],
)  # fmt: skip
@pytest.mark.parametrize("name", [b"X-Session-Id", b"X-LiteLLM-Session-Id"])
def test_odd_session_ids_are_refused(name: bytes, value: bytes) -> None:
    """A session id is a short safe word, or the request is refused, never a 500."""
    try:
        refused = refusal_of(post(LENGTH, name + b": " + value)).status
    except BadHead as e:
        refused = e.status
    assert refused in (400, 431)


@pytest.mark.parametrize(
    "media",
    [b"application/json", b"Application/JSON", b"application/json; charset=utf-8",
     b'application/json;charset="UTF-8"', b"application/json ;"],
)  # fmt: skip
def test_json_by_any_proper_name(media: bytes) -> None:
    """Case and charset do not matter."""
    head = head_of(post(LENGTH).replace(b"application/json", media))
    assert head.refusal is None


def test_endpoint_has_its_own_limit_and_media() -> None:
    """A route that takes no JSON does not ask for it; its cap is its own."""
    upload = post(b"Content-Length: 100").replace(b"/v1/chat/completions", b"/upload")
    upload = upload.replace(b"application/json", b"text/plain")
    assert head_of(upload).refusal is None
    assert refusal_of(upload.replace(b": 100", b": 101")).status == 413


@pytest.mark.parametrize(
    "name",
    [b"X-TPO-Priority", b"X-TPO-Deadline-Ms", b"X-LiteLLM-Session-Id", b"Traceparent"],
)
def test_headers_that_steer_are_noticed(name: bytes) -> None:
    """Requests without them skip the look."""
    assert head_of(post(LENGTH, name + b": 1")).special


def test_memo_answers_equal_bytes_and_stays_small() -> None:
    """One verdict per spelling; thousands of fresh ids do not grow it."""
    memo = HeadMemo(TABLE, MAX_BODY)
    raw = get(b"/v1/models")
    first = memo.parse(raw)
    assert memo.get(raw) is first
    for i in range(2000):
        memo.parse(get(b"/v1/models", b"X-Request-Id: %d" % i))
    assert len(memo._seen) <= 512
    memo.parse(raw)
    assert memo.get(raw) is not None
