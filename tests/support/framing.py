"""Requests whose bytes cannot be trusted, and the statuses that may answer them."""

from __future__ import annotations

from dataclasses import dataclass

from .messages import BODY, CHUNKED, HOST, LENGTH, chunked, get, post

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
