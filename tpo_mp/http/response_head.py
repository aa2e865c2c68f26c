"""The head of an upstream's answer: what of it steers the exchange, and what the client may see.

Invariants: contradictory framing is refused; only header lines that clients read pass, within
``MAX_PASSED_BYTES``; the body's coding does not, for it is undone before anybody sees the body.
"""

from __future__ import annotations

import httptools

from tpo_mp.errors import BackendFailure

MAX_HEADERS = 256
MAX_PASSED_BYTES = 8192
_HOP = frozenset(
    (b"connection", b"keep-alive", b"proxy-authenticate", b"proxy-authorization", b"te",
     b"trailer", b"transfer-encoding", b"upgrade", b"content-length", b"content-type", b"date",
     b"server", b"set-cookie")
)  # fmt: skip


class ResponseHead:
    """One checked response head; ``passed`` are the allow-listed header lines for the client."""

    __slots__ = (
        "chunked",
        "coding",
        "content_length",
        "content_type",
        "keep_alive",
        "passed",
        "retry_after",
        "simple",
        "status",
    )

    def __init__(self) -> None:
        self.status = 0
        self.content_type = b"application/octet-stream"
        self.content_length = -1
        self.coding = b""
        self.chunked = False
        self.keep_alive = True
        self.passed = b""
        self.retry_after: float | None = None
        self.simple = False
        """Whether a body of a known length follows as it is, and then the next answer."""


class _Head:
    __slots__ = ("complete", "headers")

    def __init__(self) -> None:
        self.headers: list[tuple[bytes, bytes]] = []
        self.complete = False

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers.append((name, value))

    def on_headers_complete(self) -> None:
        self.complete = True


def parse_response_head(raw: bytes) -> ResponseHead:
    """Check one response head; raises ``BackendFailure``."""
    seen = _Head()
    parser = httptools.HttpResponseParser(seen)
    try:
        parser.feed_data(raw)
    except httptools.HttpParserUpgrade:
        pass
    except httptools.HttpParserError as e:
        raise BackendFailure("upstream sent a malformed head", reason="bad_upstream_head") from e
    if not seen.complete or len(seen.headers) > MAX_HEADERS:
        raise BackendFailure("upstream sent a malformed head", reason="bad_upstream_head")
    head = ResponseHead()
    head.status = parser.get_status_code()
    # The parser's own answer is no use: it forgets the headers of an answer without a body.
    said = b",".join(value for name, value in seen.headers if name.lower() == b"connection")
    options = {option.strip() for option in said.lower().split(b",")}
    modern = parser.get_http_version() == "1.1"
    head.keep_alive = b"close" not in options and (modern or b"keep-alive" in options)
    _read_headers(head, seen.headers)
    return head


def _read_headers(head: ResponseHead, pairs: list[tuple[bytes, bytes]]) -> None:
    passed: list[bytes] = []
    room = MAX_PASSED_BYTES
    for name, value in pairs:
        name = name.lower()
        if b"\r" in value or b"\n" in value or b"\0" in value:
            raise BackendFailure("upstream sent a malformed head", reason="bad_upstream_head")
        if name == b"content-length":
            if not value.isdigit() or head.content_length not in (-1, int(value)):
                raise BackendFailure("upstream sent a bad length", reason="bad_upstream_head")
            head.content_length = int(value)
        elif name == b"transfer-encoding":
            if value.lower() != b"chunked":
                raise BackendFailure("upstream used an unknown coding", reason="bad_upstream_head")
            head.chunked = True
        elif name == b"content-type":
            head.content_type = value[:256]
        elif name == b"content-encoding":
            coding = value.strip().lower()
            if coding not in (b"", b"identity"):
                head.coding = head.coding + b", " + coding if head.coding else coding
        elif _passes(name):
            line = b"%b: %b\r\n" % (name, value)
            room -= len(line)
            if room >= 0:
                passed.append(line)
            if name == b"retry-after-ms" and value.isdigit():
                head.retry_after = float(value) / 1e3
            elif name == b"retry-after" and head.retry_after is None and value.isdigit():
                head.retry_after = float(value[:9])
    if head.chunked and head.content_length >= 0:
        raise BackendFailure("upstream sent both length and chunked", reason="bad_upstream_head")
    if head.status in (204, 304):
        head.content_length = 0
        head.chunked = False
    head.passed = b"".join(passed)
    final = head.status >= 200 and head.content_length >= 0 and not head.coding
    head.simple = final and head.keep_alive and not head.chunked


def _passes(name: bytes) -> bool:
    """Only headers SDKs and operators read reach the client."""
    return name not in _HOP and (
        name.startswith((b"x-ratelimit-", b"openai-", b"anthropic-", b"retry-after"))
        or name in (b"x-should-retry", b"cf-ray", b"x-upstream-request-id")
    )
