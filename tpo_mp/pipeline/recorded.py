"""A reply written down while it goes by, and given again later.

``record`` passes a stream on untouched and tells, once, what it was; ``replayed`` makes a reply of
what was kept.

A recorded stream may outlive its client: ``cancel`` only silences it, and goes on reading for the
record's sake; ``give_up`` ends it.

Invariants: at most ``limit_bytes`` are kept of a reply; what is over is not kept at all; ``done``
is told once, ``None`` or why the reply broke off.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from msgspec import structs

from tpo_mp.errors import Cancelled, TpoError, from_wire
from tpo_mp.store.key_questions import KeptAnswer
from tpo_mp.types import Call, Reply, Sink, Stream, Usage

from .delivery import limits_first

REPLAYED: Final = "replayed"


class RecordedStream:
    """A stream on its way to its client, and into the record."""

    __slots__ = ("_done", "_limit", "_origin", "_parts", "_reading", "_sink", "_size")

    def __init__(
        self, origin: Stream, limit_bytes: int, done: Callable[[TpoError | None], object]
    ) -> None:
        self._origin = origin
        self._limit = limit_bytes
        self._done: Callable[[TpoError | None], object] | None = done
        self._sink: Sink | None = None
        self._parts: list[bytes] = []
        self._size = 0
        self._reading = False

    @property
    def body(self) -> bytes | None:
        """Every byte that came; ``None`` when these are too many to keep."""
        return b"".join(self._parts) if self._size <= self._limit else None

    # -- Stream -------------------------------------------------------------------------------

    def attach(self, sink: Sink) -> None:
        self._sink = sink
        self._read()

    def pause(self) -> None:
        self._origin.pause()

    def resume(self) -> None:
        self._origin.resume()

    def cancel(self) -> None:
        """The client wants no more; the record does."""
        self._sink = None
        if self._done is not None:
            if self._reading:
                self._origin.resume()
            else:
                self._read()

    def give_up(self) -> None:
        """Nobody wants the rest."""
        self._sink = None
        self._origin.cancel()
        self._tell(Cancelled("nobody wanted the rest"))

    def _read(self) -> None:
        self._reading = True
        self._origin.attach(self)

    # -- Sink of the origin -------------------------------------------------------------------

    def data(self, chunk: bytes) -> None:
        self._size += len(chunk)
        if self._size <= self._limit:
            self._parts.append(chunk)
        else:
            self._parts.clear()
        if self._sink is not None:
            self._sink.data(chunk)

    def end(self, error: TpoError | None) -> None:
        sink, self._sink = self._sink, None
        if sink is not None:
            sink.end(error)
        self._tell(error)

    def _tell(self, error: TpoError | None) -> None:
        done, self._done = self._done, None
        if done is not None:
            done(error)


class _Again:
    """A stream that has come already."""

    __slots__ = ("_body",)

    def __init__(self, body: bytes) -> None:
        self._body = body

    def attach(self, sink: Sink) -> None:
        body, self._body = self._body, b""
        if body:
            sink.data(body)
        sink.end(None)

    def pause(self) -> None:
        """All of it was sent at once."""

    def resume(self) -> None:
        """As above."""

    def cancel(self) -> None:
        self._body = b""


def kept(call: Call, reply: Reply, body: bytes | None) -> KeptAnswer:
    """What to keep of a reply that is whole."""
    usage = reply.usage or Usage()
    return KeptAnswer(
        call.id, reply.status, reply.content_type, limits_first(b"", reply.headers), body,
        reply.stream is not None, usage.prompt, usage.completion, usage.cached,
        reply.finish_reason,
    )  # fmt: skip


def without_body(answer: KeptAnswer) -> KeptAnswer:
    """That there was such an answer, and nothing of what it said."""
    return structs.replace(answer, body=None, headers=b"")


def kept_error(call_id: str, error: TpoError) -> KeptAnswer:
    """What to keep of an error."""
    wire = error.to_wire()
    return KeptAnswer(
        call_id, error.status, b"", b"", b"", stream=False, error=wire, error_body=error.body
    )


def replayed(call: Call, answer: KeptAnswer) -> Reply:
    """The answer as this call's own; raises the error it is.  Its body was kept."""
    lines = b"idempotency-replayed: true\r\nx-tpo-first-call-id: %b\r\n" % answer.call_id.encode()
    if answer.error is not None:
        error = from_wire(answer.error)
        error.body = answer.error_body
        error.lines += lines
        raise error
    assert answer.body is not None
    reply = Reply(
        answer.status,
        None if answer.stream else answer.body,
        stream=_Again(answer.body) if answer.stream else None,
        content_type=answer.content_type,
        headers=answer.headers + lines,
    )
    if answer.prompt >= 0 or answer.completion >= 0:
        reply.usage = Usage(answer.prompt, answer.completion, answer.cached)
    reply.finish_reason = answer.finish_reason
    call.cache = REPLAYED
    return reply
