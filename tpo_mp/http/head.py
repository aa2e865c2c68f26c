"""Request heads: parsed once, checked once, and remembered byte for byte.

A client on a kept-alive connection sends the same head again and again, so the checked result is
kept in a bounded memo keyed by the head's own bytes: equal bytes mean an equal verdict.
A head that was never seen goes through httptools (llhttp, strict) and the checks below.

Invariants: a ``Head`` is immutable after ``parse``; the memo never outlives its route table.
Known weakness: clients that put a fresh id into every request pay the full parse each time.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol, cast
from urllib.parse import unquote_to_bytes

import httptools

from tpo_mp.errors import InvalidRequest, NotFound, TooLarge, TpoError, Unauthorized
from tpo_mp.types import EVERYBODY, Principal

from .compress import Coding
from .trace import trace_lines

if TYPE_CHECKING:
    from .endpoints import Endpoint, EndpointTable, Family
    from .tally import TallyRow

MAX_HEADERS = 64
MAX_LINE_BYTES = 8190
MAX_QUERY_PAIRS = 256
_MEMO_CAP = 512

_HOST = re.compile(rb"(?:[A-Za-z0-9._-]{1,253}|\[[0-9A-Fa-f:.]{2,45}\])(?::[0-9]{1,5})?")
_SAFE_TARGET = re.compile(rb"/[!-~]*")
_SINGLE = frozenset(
    (b"host", b"content-length", b"content-type", b"transfer-encoding", b"authorization",
     b"x-api-key", b"api-key", b"x-admin-key", b"x-session-id", b"expect", b"upgrade",
     b"x-tpo-priority", b"x-tpo-deadline-ms", b"x-request-id", b"x-litellm-session-id", b"origin",
     b"idempotency-key", b"x-tpo-tags")
)  # fmt: skip
STEERING = frozenset(
    (b"x-tpo-priority", b"x-tpo-deadline-ms", b"x-litellm-session-id", b"traceparent",
     b"idempotency-key", b"x-sim-error", b"x-sim-fault", b"x-sim-key", b"x-tpo-cache",
     b"cache-control", b"x-tpo-tags")
)  # fmt: skip
"""Headers that make a call another than its body says."""
_SPECIAL = STEERING | {b"x-api-key"}
ALWAYS = b"x-content-type-options: nosniff\r\n"
NO_STORE = b"cache-control: no-store\r\n"
_SESSION = re.compile(rb"[A-Za-z0-9._:-]{1,128}")
_REQUEST_ID = re.compile(rb"[!-~]{1,128}")


class Judge(Protocol):
    """Has a last word on a checked head; see ``policy`` and ``keyring``."""

    def apply(self, head: Head) -> None: ...


class BadHead(Exception):
    """The bytes are not an acceptable HTTP/1.x head; the connection must close."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.message = message


class Head:
    """One checked request head.

    ``full_lane`` names why the fast lane must not take the request ("" when it may).
    ``extra`` are header lines every response to it carries, ``whole`` those of a whole response.
    ``shaped`` says that a whole response is not simply sent (HEAD, preflight, a copy that may be
    fresh, compression from ``pack_from`` bytes on).
    ``coding`` is how a whole answer may be compressed, ``stream_coding`` how a stream is.
    ``family`` is whose words refuse a method that the path does not have.
    ``client`` is the address that a trusted proxy may name; ``None`` when no proxy is trusted.
    ``principal`` is whom it speaks for, ``keyed`` the header that proved it.
    ``trace`` are the header lines that continue the client's trace upstream.
    ``tally`` is where it is counted.
    ``scope`` is what a shard knows of bodies with such a head (``worker.recalls``).
    ``special`` says that headers which steer a call are present, ``sdk`` that an SDK tells of
    itself.
    ``refusal`` is an error found after framing was settled: the body can be skipped and the
    connection lives on.
    """

    __slots__ = (
        "client", "coding", "content_length", "endpoint", "extra", "family", "full_lane",
        "headers", "keep_alive", "keyed", "method", "pack_from", "params", "path", "principal",
        "query", "refusal", "request_id", "scope", "sdk", "session", "shaped", "special",
        "stream_coding", "tally", "trace", "version_10", "whole",
    )  # fmt: skip

    def __init__(self) -> None:
        self.method = ""
        self.path = ""
        self.query = b""
        self.headers: dict[bytes, bytes] = {}
        self.content_length = 0
        self.keep_alive = True
        self.version_10 = False
        self.full_lane = ""
        self.endpoint: Endpoint | None = None
        self.family: Family | None = None
        self.params: dict[str, str] = {}
        self.refusal: TpoError | None = None
        self.session: str | None = None
        self.request_id = ""
        self.special = False
        self.sdk = False
        self.extra = self.whole = ALWAYS
        self.trace = b""
        self.shaped = False
        self.pack_from = 0
        self.coding: Coding | None = None
        self.stream_coding: Coding | None = None
        self.client: str | None = None
        self.principal: Principal = EVERYBODY
        self.keyed = b""
        self.tally: TallyRow = cast("TallyRow", None)
        self.scope: Any = None

    def add_lines(self, lines: bytes) -> None:
        """Let every response carry ``lines`` too."""
        self.extra += lines
        self.whole += lines


class _Collector:
    """Receives httptools' callbacks for one head."""

    __slots__ = ("complete", "headers", "target")

    def __init__(self) -> None:
        self.target = b""
        self.headers: list[tuple[bytes, bytes]] = []
        self.complete = False

    def on_url(self, target: bytes) -> None:
        self.target += target

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers.append((name, value))

    def on_headers_complete(self) -> None:
        self.complete = True


class HeadMemo:
    """Parses heads for one endpoint table and remembers the verdicts."""

    def __init__(
        self, table: EndpointTable, max_body_bytes: int, judges: Sequence[Judge] = ()
    ) -> None:
        self._table = table
        self._max_body = max_body_bytes
        self._judges = judges
        self._seen: dict[bytes, Head] = {}
        self.get = self._seen.get

    def parse(self, raw: bytes) -> Head:
        """Check ``raw`` (through its CRLFCRLF); raises ``BadHead`` when framing is in doubt."""
        head = parse(raw, self._table, self._max_body, self._judges)
        if isinstance(head.refusal, Unauthorized):
            return head  # a guesser's heads would push out those that come again
        if len(self._seen) >= _MEMO_CAP:
            self._seen.clear()
        self._seen[raw] = head
        return head


def parse(
    raw: bytes, table: EndpointTable, max_body_bytes: int, judges: Sequence[Judge] = ()
) -> Head:
    """Parse and check one head; see ``HeadMemo.parse``."""
    _check_lines(raw)
    seen = _Collector()
    parser = httptools.HttpRequestParser(seen)
    try:
        parser.feed_data(raw)
    except httptools.HttpParserUpgrade:
        pass  # the full lane decides what an upgrade means
    except httptools.HttpParserError as e:
        raise BadHead(400, "malformed request head") from e
    if not seen.complete:
        raise BadHead(400, "malformed request head")
    version = parser.get_http_version()
    if version not in ("1.0", "1.1"):
        raise BadHead(505, "HTTP version must be 1.0 or 1.1")
    return check(
        parser.get_method().decode("latin-1"),
        seen.target,
        seen.headers,
        version == "1.0",
        table,
        max_body_bytes,
        judges,
    )


def check(
    method: str,
    target: bytes,
    pairs: Sequence[tuple[bytes, bytes]],
    version_10: bool,
    table: EndpointTable,
    max_body_bytes: int,
    judges: Sequence[Judge] = (),
) -> Head:
    """Check what a parser found, whichever lane's; raises ``BadHead``."""
    head = Head()
    head.method = method
    head.version_10 = version_10
    _index(head, pairs)
    _check_framing(head)
    # The parser's own answer is no use: it forgets the headers of a request without a body.
    options = {o.strip() for o in head.headers.get(b"connection", b"").lower().split(b",")}
    head.keep_alive = b"close" not in options and (not version_10 or b"keep-alive" in options)
    _check_target(head, target)
    _route(head, table, max_body_bytes)
    for judge in judges:
        judge.apply(head)
    return head


def _check_lines(raw: bytes) -> None:
    """Refuse what lenient parsers let through: bare CR or LF, folds, odd lines, too many."""
    lines = raw[:-4].split(b"\r\n")
    if len(lines) - 1 > MAX_HEADERS:
        raise BadHead(431, f"more than {MAX_HEADERS} header lines")
    for i, line in enumerate(lines):
        if len(line) > MAX_LINE_BYTES:
            raise BadHead(414 if i == 0 else 431, f"a line is longer than {MAX_LINE_BYTES} bytes")
        if b"\n" in line or b"\r" in line or b"\0" in line:
            raise BadHead(400, "control character in request head")
        if i and (line[:1] in (b" ", b"\t") or b":" not in line):
            raise BadHead(400, "malformed header line")
    if lines[0].count(b" ") != 2 or b" HTTP/" not in lines[0]:
        raise BadHead(400, "malformed request line")


def _index(head: Head, pairs: Sequence[tuple[bytes, bytes]]) -> None:
    headers = head.headers
    for name, value in pairs:
        name = name.lower()
        if name.startswith(b"x-stainless-"):
            head.sdk = True
        if name in headers:
            if name in _SINGLE:
                raise BadHead(400, f"header {name.decode('latin-1')} given twice")
            headers[name] += b", " + value
        else:
            headers[name] = value


def _check_framing(head: Head) -> None:
    headers = head.headers
    host = headers.get(b"host")
    if host is None:
        if not head.version_10:
            raise BadHead(400, "missing host header")
    elif not _HOST.fullmatch(host):
        raise BadHead(400, "invalid host header")
    length = headers.get(b"content-length")
    coding = headers.get(b"transfer-encoding")
    if coding is not None:
        if length is not None:
            raise BadHead(400, "both content-length and transfer-encoding")
        if head.version_10 or coding.lower() != b"chunked":
            raise BadHead(400, "transfer-encoding must be chunked, in HTTP/1.1")
        head.full_lane = "chunked"
    if length is not None:
        if not length.isdigit() or len(length) > 12:
            raise BadHead(400, "invalid content-length")
        head.content_length = int(length)
    expect = headers.get(b"expect")
    if expect is not None:
        if expect.lower() != b"100-continue":
            raise BadHead(417, "unknown expectation")
        head.full_lane = "expect"
    upgrade = headers.get(b"upgrade")
    if upgrade is not None and upgrade.lower() == b"websocket":
        head.full_lane = "upgrade"


def _check_target(head: Head, target: bytes) -> None:
    if not _SAFE_TARGET.fullmatch(target):
        # Absolute form, "*", and bytes outside printable ASCII: we are an origin, not a proxy.
        raise BadHead(400, "request target must be an absolute path")
    path, _, query = target.partition(b"?")
    decoded = unquote_to_bytes(path) if b"%" in path else path
    if b"\0" in decoded or b"#" in target:
        raise BadHead(400, "invalid character in path")
    try:
        head.path = decoded.decode("utf-8")
    except UnicodeDecodeError:
        raise BadHead(400, "path is not UTF-8") from None
    if query.count(b"&") >= MAX_QUERY_PAIRS:
        raise BadHead(414, f"more than {MAX_QUERY_PAIRS} query parameters")
    head.query = query


def _route(head: Head, table: EndpointTable, max_body_bytes: int) -> None:
    headers = head.headers
    head.special = not _SPECIAL.isdisjoint(headers)
    head.shaped = head.method == "HEAD" or b"if-none-match" in headers
    if b"traceparent" in headers:
        head.trace = trace_lines(headers)
    endpoint, params, allowed = table.match(head.method, head.path)
    head.endpoint, head.params = endpoint, params
    if endpoint is None or endpoint.family != "ops":
        head.whole += NO_STORE
    request_id = headers.get(b"x-request-id", b"")
    if request_id and _REQUEST_ID.fullmatch(request_id):
        head.request_id = request_id.decode("ascii")
    elif request_id:
        head.refusal = InvalidRequest(
            "x-request-id must be 1 to 128 printable ASCII characters", param="x-request-id"
        )
    session = headers.get(b"x-session-id")
    if session is not None:
        if _SESSION.fullmatch(session):
            head.session = session.decode("ascii")
        else:
            head.refusal = _unsafe_session("x-session-id")
    hint = headers.get(b"x-litellm-session-id") if head.special else None
    if hint is not None and not _SESSION.fullmatch(hint):
        head.refusal = _unsafe_session("x-litellm-session-id")
    if endpoint is None:
        head.family = table.family(head.path)
        head.refusal = (
            InvalidRequest(f"method {head.method} is not allowed here; use {allowed}",
                           reason="method_not_allowed", status=405)
            if allowed
            else NotFound(f"no route {head.method} {head.path[:200]}", reason="unknown_url")
        )  # fmt: skip
    if head.content_length > (min(endpoint.max_body_bytes or max_body_bytes, max_body_bytes)
                              if endpoint else max_body_bytes):  # fmt: skip
        head.refusal = TooLarge(f"body of {head.content_length} bytes is over the limit")
        head.keep_alive = False
    elif endpoint is not None and endpoint.method == "POST" and endpoint.takes_json:
        _check_media(head)


def _unsafe_session(name: str) -> InvalidRequest:
    return InvalidRequest(f"{name} must match [A-Za-z0-9._:-]{{1,128}}", param=name)


def _check_media(head: Head) -> None:
    """JSON routes take JSON, uncompressed; anything else would be guessed at."""
    if b"content-encoding" in head.headers:
        head.refusal = InvalidRequest(
            "content-encoding is not supported for requests",
            reason="unsupported_media_type", status=415, param="content-encoding",
        )  # fmt: skip
        return
    media, _, rest = head.headers.get(b"content-type", b"").lower().partition(b";")
    charset = rest.strip()
    if media.strip() != b"application/json" or charset not in (b"", b"charset=utf-8",
                                                              b'charset="utf-8"'):  # fmt: skip
        head.refusal = InvalidRequest(
            "content-type must be application/json",
            reason="unsupported_media_type", status=415, param="content-type",
        )  # fmt: skip
