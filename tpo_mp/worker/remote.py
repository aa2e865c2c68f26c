"""A forwarded call on its owner's side: a promise of a reply, then the reply's stream.

Invariants: the promise is settled once; credit is granted only for bytes that were taken; once it
is over, nothing more is delivered and the other shard knows, or is dead.
"""

from __future__ import annotations

from time import monotonic
from typing import TYPE_CHECKING

import msgspec

from tpo_mp.errors import TpoError, WorkerLost, from_wire
from tpo_mp.pipeline.promise import Promise
from tpo_mp.shm import frames
from tpo_mp.shm.frames import HEAD, Kind
from tpo_mp.types import Aside, Call, Reply, Sink, Usage

if TYPE_CHECKING:
    from .mesh import Mesh

GRANT_BYTES = 16384
_encode = msgspec.msgpack.Encoder().encode


_KEPT: Promise[Reply] = Promise()
"""Stands for promises that were kept long ago."""


class Bounced(Exception):
    """The chosen shard does not hold that key any more: place the call again."""


class Remote:
    """A forwarded call on its owner's side: a promise of a reply, then its stream."""

    __slots__ = (
        "_buffer",
        "_ended",
        "_error",
        "_grant_at",
        "_mesh",
        "_over",
        "_owed",
        "_paused",
        "_reply",
        "_sink",
        "_whole",
        "began_at",
        "call",
        "life",
        "number",
        "promise",
        "seat",
    )

    def __init__(
        self, mesh: Mesh, call: Call, seat: int, number: int, life: tuple[int, int]
    ) -> None:
        self._mesh = mesh
        self.call = call
        self.seat = seat
        self.number = number
        self.life = life
        self.began_at = monotonic()
        self.promise: Promise[Reply] = Promise(self.cancel)
        self._reply: Reply | None = None
        self._whole: list[bytes] | None = None
        self._buffer: list[bytes] = []
        self._sink: Sink | None = None
        self._paused = False
        self._owed = 0
        # Always less than the credit: at zero credit nothing comes that would raise the debt.
        self._grant_at = min(GRANT_BYTES, mesh.credit_bytes // 2)
        self._ended = False
        self._error: TpoError | None = None
        self._over = False

    def replied(self, frame: frames.ReplyFrame) -> None:
        """The reply's head arrived."""
        call = self.call
        call.backend, call.attempts = frame.backend, frame.attempts
        call.unclear = call.unclear or frame.unclear
        if frame.cache:
            call.cache = frame.cache
        if frame.aside is not None:
            call.aside = Aside(*frame.aside)
        now = monotonic()
        call.first_byte_at = now
        call.upstream_at = now - frame.first_byte_s
        reply = Reply(
            frame.status,
            frame.body,
            content_type=frame.content_type,
            headers=frame.headers,
            backend=frame.backend,
        )
        if frame.prompt_tokens >= 0 or frame.completion_tokens >= 0:
            reply.usage = Usage(frame.prompt_tokens, frame.completion_tokens, frame.cached_tokens)
        self._reply = reply
        if frame.body is not None:
            self._close()
            self.promise.resolve(reply)
        elif frame.stream:
            reply.stream = self
            self.promise.resolve(reply)
        else:
            self._whole = []

    def data(self, chunk: bytes) -> None:
        if self._over:
            return
        self._owed += len(chunk)
        if self._whole is not None:
            self._whole.append(chunk)
        elif self._sink is not None:
            self._sink.data(chunk)
        else:
            self._buffer.append(chunk)
            return
        if self._owed >= self._grant_at and not self._paused:
            self._grant()

    def tick(self) -> None:
        """Grant what a full ring refused to take: at zero credit no chunk comes to do it."""
        taken = self._sink is not None or self._whole is not None
        if taken and self._owed >= self._grant_at and not self._paused:
            self._grant()

    def ended(self, frame: frames.EndFrame) -> None:
        """The last frame arrived."""
        error = None if frame.error is None else from_wire(frame.error)
        if error is not None:
            error.body = frame.error_body
        if frame.attempts:
            self.call.attempts = frame.attempts
            self.call.backend = frame.backend
        self.call.unclear = self.call.unclear or frame.unclear
        if frame.aside is not None:
            self.call.aside = Aside(*frame.aside)
        reply = self._reply
        if reply is not None:
            if frame.prompt_tokens >= 0 or frame.completion_tokens >= 0:
                reply.usage = Usage(
                    frame.prompt_tokens, frame.completion_tokens, frame.cached_tokens
                )
            reply.finish_reason = frame.finish_reason
        self._close()
        if reply is None or self._whole is not None:
            if error is not None or reply is None or self._whole is None:
                self.promise.reject(error or WorkerLost("the shard ended the call without a reply"))
            else:
                reply.body = b"".join(self._whole)
                self.promise.resolve(reply)
        else:
            self._finish(error)

    def bounced(self) -> None:
        """The other shard does not hold the session any more."""
        self._over = True
        self.promise.reject(Bounced())

    def lost(self, why: str) -> None:
        """The other shard is gone, or something it sent is."""
        if self._over:
            return
        self._close()
        if self.life == self._mesh.links.life_of(self.seat):
            self._mesh.tell(self.seat, Kind.CANCEL, self.number)
        error = WorkerLost(why)
        if self._reply is None or self._whole is not None:
            self.promise.reject(error)
        else:
            self._finish(error)

    # -- Stream -------------------------------------------------------------------------------

    def attach(self, sink: Sink) -> None:
        self._sink = sink
        buffered, self._buffer = self._buffer, []
        for chunk in buffered:
            sink.data(chunk)
        if self._ended:
            self._sink = None
            sink.end(self._error)
        elif self._owed >= self._grant_at and not self._paused:
            self._grant()

    def pause(self) -> None:
        self._paused = True

    def resume(self) -> None:
        self._paused = False
        if self._owed and not self._over:
            self._grant()

    def cancel(self) -> None:
        self._sink = None
        if not self._over:
            self._close()
            self._mesh.tell(self.seat, Kind.CANCEL, self.number)
        self._let_go()

    def _grant(self) -> None:
        owed = self._owed
        head = HEAD.pack(Kind.CREDIT, self.number)
        # Refused credit is not lost: it stays owed and goes with the next tick.
        if self._mesh.links.push(self.seat, head, _encode(frames.CreditFrame(owed)), control=True):
            self._owed = 0

    def _close(self) -> None:
        self._over = True
        self._mesh.forget(self)

    def _let_go(self) -> None:
        """Forget the reply whose stream this is: one holding the other would be a circle."""
        self._reply, self.promise = None, _KEPT

    def _finish(self, error: TpoError | None) -> None:
        self._ended = True
        self._error = error
        self._let_go()
        sink, self._sink = self._sink, None
        if sink is not None:
            sink.end(error)
