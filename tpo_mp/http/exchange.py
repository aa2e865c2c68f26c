"""One request and its response, whichever lane carries it.

Both lanes implement ``Exchange``; handlers know nothing else of HTTP.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from itertools import count
from typing import Protocol

from tpo_mp.types import Stream

from .head import Head

REASON = {
    101: b"Switching Protocols", 200: b"OK", 202: b"Accepted", 204: b"No Content",
    304: b"Not Modified", 400: b"Bad Request", 401: b"Unauthorized",
    402: b"Payment Required", 403: b"Forbidden", 404: b"Not Found", 405: b"Method Not Allowed",
    408: b"Request Timeout", 409: b"Conflict", 411: b"Length Required", 413: b"Content Too Large",
    414: b"URI Too Long", 415: b"Unsupported Media Type", 417: b"Expectation Failed",
    421: b"Misdirected Request", 422: b"Unprocessable Content", 426: b"Upgrade Required",
    429: b"Too Many Requests", 431: b"Request Header Fields Too Large",
    499: b"Client Closed Request",
    500: b"Internal Server Error", 501: b"Not Implemented", 502: b"Bad Gateway",
    503: b"Service Unavailable", 504: b"Gateway Timeout", 505: b"HTTP Version Not Supported",
    529: b"Overloaded",
}  # fmt: skip
JSON = b"application/json"
SSE = b"text/event-stream; charset=utf-8"


# For answers without a call, whose own id would cost more than the answer.
_PROCESS = "req-" + os.urandom(8).hex()
_number = count(1)


def request_id(head: Head) -> str:
    """The client's request id, or a new one of ours."""
    return head.request_id or new_request_id()


def new_request_id() -> str:
    """An id that no other answer of any process has."""
    return f"{_PROCESS}-{next(_number):x}"


def id_line(head: Head, name: bytes = b"x-request-id") -> bytes:
    """Name the request in its answer."""
    return b"%b: %b\r\n" % (name, request_id(head).encode())


class Exchange(Protocol):
    """A request to answer exactly once.

    ``extra`` arguments are complete header lines, each ending in CRLF; nothing a client sent may
    reach them unchecked.  ``on_disconnect`` is called if the client leaves first; ``open`` says
    whether it waits still.
    """

    head: Head
    body: bytes
    peer: str
    on_disconnect: Callable[[], None] | None

    @property
    def open(self) -> bool: ...

    def respond(
        self, status: int, body: bytes, content_type: bytes = JSON, extra: bytes = b""
    ) -> None:
        """Send a whole response."""

    def begin(self, status: int, content_type: bytes, extra: bytes, source: Stream | None) -> None:
        """Send a head whose body follows; ``source`` is paused while the client reads slowly."""

    def write(self, data: bytes) -> None:
        """Send body bytes (never empty)."""

    def finish(self) -> None:
        """End the body started by ``begin``."""

    def abort(self, *, hard: bool = False) -> None:
        """Break the connection so that the client sees the body is incomplete.

        ``hard`` is with a reset, whatever has not left yet.
        """
