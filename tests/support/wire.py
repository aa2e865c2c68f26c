"""One request over one asyncio connection, told step by step: what happened, and how far it came.

A load test must know more than "failed": whether the connection was refused, whether the request
line had left, whether a reply began, whether a stream ended as it should.
"""

from __future__ import annotations

import asyncio
import json
import time
from dataclasses import dataclass, field
from typing import Any, Literal
from urllib.parse import urlsplit

from .raw import build, chat, parse_head, sse_data

Outcome = Literal[
    "open",  # not over yet
    "ok",  # a complete answer
    "error",  # an error status, or an error event in a stream that ended properly
    "cut",  # the connection ended in the middle
    "refused",  # it could not connect, or was reset before the request line was sent
    "hung",  # nothing within the patience
]
Phase = Literal["connect", "send", "head", "body", "end"]
LIMIT_BYTES = 1 << 20
DONE = b"[DONE]"


@dataclass(slots=True)
class Attempt:
    """One request and what became of it."""

    id: str
    stream: bool = False
    session: str = ""
    outcome: Outcome = "open"
    phase: Phase = "connect"
    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    why: str = ""
    reused: bool = False
    began_at: float = field(default_factory=time.monotonic)
    first_at: float = 0.0
    ended_at: float = 0.0

    @property
    def events(self) -> list[bytes]:
        """Payloads of the stream so far."""
        return sse_data(self.body)

    @property
    def done(self) -> bool:
        """Whether the stream carried its terminal event."""
        return DONE in self.events

    @property
    def error(self) -> dict[str, Any] | None:
        """The error object of the reply or of the stream, if there is one."""
        bodies = self.events if self.stream and self.status == 200 else [self.body]
        for body in bodies:
            if b'"error"' in body:
                found: dict[str, Any] = json.loads(body)["error"]
                return found
        return None

    @property
    def slot(self) -> int:
        """The slot that ran it, by the reply's own word."""
        return int(self.headers.get("x-tpo-shard", "-1"))

    @property
    def call_id(self) -> str:
        """The gateway's id of the call."""
        return self.headers.get("x-tpo-call-id", "")

    def request(
        self, host: str, text: str, model: str, target: str, *, key: str = "", **more: Any
    ) -> bytes:
        """Render the request; its id is also in the text, for the upstream's log."""
        value = chat(f"{self.id} {text}".strip(), model, stream=self.stream, **more)
        headers = {"Host": host, "Content-Type": "application/json", "X-Request-Id": self.id}
        if self.session:
            headers["X-Session-Id"] = self.session
        if key:
            headers["Authorization"] = f"Bearer {key}"
        return build("POST", target, headers, json.dumps(value).encode())


class Wire:
    """A connection that may be kept for the next attempt."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        assert parts.hostname, url
        assert parts.port, url
        self.host, self.port = parts.hostname, parts.port
        self._reader: asyncio.StreamReader | None = None
        self._writer: asyncio.StreamWriter | None = None

    async def run(self, attempt: Attempt, request: bytes, *, patience_s: float = 15.0) -> None:
        """Make one attempt; never raises but for cancellation."""
        try:
            async with asyncio.timeout(patience_s):
                await self._run(attempt, request)
        except TimeoutError:
            attempt.outcome, attempt.why = "hung", f"nothing for {patience_s} s"
            self.close()
        except (OSError, EOFError) as error:
            unsent = attempt.phase in ("connect", "send")
            attempt.outcome, attempt.why = "refused" if unsent else "cut", repr(error)
            self.close()
        attempt.ended_at = time.monotonic()

    async def _run(self, attempt: Attempt, request: bytes) -> None:
        reader = self._reader
        if reader is None or reader.at_eof() or reader.exception() is not None:
            self.close()
            reader, self._writer = await asyncio.open_connection(
                self.host, self.port, limit=LIMIT_BYTES
            )
            self._reader = reader
        else:
            attempt.reused = True
        writer = self._writer
        assert writer is not None
        attempt.phase = "send"
        writer.write(request)
        attempt.phase = "head"
        await self._read(attempt, reader)
        attempt.phase = "end"
        self._judge(attempt)
        if attempt.headers.get("connection", "").lower() == "close":
            self.close()

    async def _read(self, attempt: Attempt, reader: asyncio.StreamReader) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        attempt.first_at = time.monotonic()
        attempt.status, attempt.headers = parse_head(head)
        attempt.phase = "body"
        if attempt.headers.get("transfer-encoding", "").lower() != "chunked":
            attempt.body = await reader.readexactly(int(attempt.headers["content-length"]))
            return
        while size := int(await reader.readuntil(b"\r\n"), 16):
            attempt.body += (await reader.readexactly(size + 2))[:-2]
        await reader.readexactly(2)

    def _judge(self, attempt: Attempt) -> None:
        if attempt.status >= 400 or attempt.error is not None:
            attempt.outcome, attempt.why = "error", str(attempt.error)
        elif attempt.stream and not attempt.done:
            attempt.outcome, attempt.why = "cut", "a stream that ended without its last event"
        else:
            attempt.outcome = "ok"

    def close(self) -> None:
        """Let go of the connection."""
        if self._writer is not None:
            self._writer.transport.abort()
        self._reader = self._writer = None
