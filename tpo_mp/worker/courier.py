"""Brings a call to the one shard of the host where its like are served.

That is the first that was asked for the key, and which claimed it (``shm.claims``): a call that is
alone is served where it came, and pays for a claim instead of a way through the mesh.

When that shard dies before it answered, the first of its callers claims the key, and the others are
brought there.

A stream that its client has a part of goes on only if the answer is certain to be the same and what
the client has comes again; else it ends with the error.

Invariants: a call is brought ``MAX_PLACINGS`` times at most, then it is served here; at most
``KEPT_BYTES`` of a stream are kept for the comparison; each call has one outcome.
Known weakness: a call that finds no room for a claim shares nothing with other shards; what is
longer than ``rings.inline_bytes`` travels by reference to the owner's
memory, so such a call that was forwarded by its session is served where it is.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from hashlib import blake2b
from typing import Any, Final, TypeAlias

from tpo_mp.errors import Shed, TpoError, WorkerLost
from tpo_mp.pipeline.between import Spliced
from tpo_mp.pipeline.prefix import DifferentError, Prefix
from tpo_mp.pipeline.promise import Promise, run
from tpo_mp.shm.claims import NAME_BYTES, NOBODY, SharedClaims
from tpo_mp.shm.plane import NO_SEAT, Plane
from tpo_mp.types import Call, Reply, Stream

from .mesh import Mesh
from .remote import Bounced

MAX_PLACINGS: Final = 3
KEPT_BYTES: Final = 1 << 20
Here: TypeAlias = Callable[[Call], Awaitable[Reply]]


class Courier:
    """One shard's way to where calls of a key are served."""

    def __init__(
        self,
        *,
        mesh: Mesh,
        claims: SharedClaims,
        plane: Plane,
        seat: int,
        check: Callable[[Call], None],
    ) -> None:
        """``check`` raises when a call must not be tried again (``Poison.check``)."""
        self.mesh = mesh
        self.plane = plane
        self.check = check
        self.seat = seat
        self._claims = claims
        self._alone = plane.workers == 1

    def leader(self, key: bytes, lost: tuple[int, int] | None = None) -> int:
        """The seat where a key lives: this one, if it lived nowhere; ``NOBODY``: nowhere still.

        ``lost`` are seat and epoch of who shall not be asked again.
        """
        return self._claims.leader(_name(key), lost)

    def lead(self, key: bytes) -> None:
        """A key that lives nowhere shall live here."""
        if not self._alone:
            self._claims.leader(_name(key))

    def leave(self, key: bytes) -> None:
        """A key lives here no more."""
        if not self._alone:
            self._claims.release(_name(key))

    def bring(
        self, call: Call, key: bytes, epoch: int, sure: bool, here: Here
    ) -> Awaitable[Reply] | None:
        """Have a call answered where its key lives; ``None``: that is here, and lived nowhere."""
        if self._alone:
            return None
        seat = self.leader(key)
        if seat == NOBODY:
            return None
        if seat == self.seat:
            return here(call) if self._claims.known else None
        errand = _Errand(self, call, key, epoch, sure, here)
        return errand.out if errand.sent(seat) else None


def _name(key: bytes) -> bytes:
    """What a key is called among claims: itself, but for some bits of its digest if need be."""
    if len(key) <= NAME_BYTES + 3:
        return key[-NAME_BYTES:]
    return blake2b(key, digest_size=NAME_BYTES).digest()


class _Errand:
    """One call that another shard serves."""

    __slots__ = ("_at", "_call", "_cancel", "_courier", "_epoch", "_here", "_key", "_left",
                 "_told", "out", "sure")  # fmt: skip

    def __init__(
        self, courier: Courier, call: Call, key: bytes, epoch: int, sure: bool, here: Here
    ) -> None:
        self._courier = courier
        self._call = call
        self._key = key
        self._epoch = epoch
        self._here = here
        self._left = MAX_PLACINGS
        self._at = (NO_SEAT, 0)
        """Seat and epoch of the shard that has it."""
        self._told: Callable[[Reply | None, BaseException | None], None] = self._first
        self._cancel: Callable[[], object] | None = None
        self.sure = sure
        self.out: Promise[Reply] = Promise(self.cancel)

    def sent(self, seat: int) -> bool:
        """Send it; False: it can only be served here."""
        courier, call = self._courier, self._call
        try:
            remote = courier.mesh.forward(call, seat, self._epoch, self._key)
        except Shed:  # that shard has more to do than this one
            return False
        if remote is None:
            return False
        if call.slot >= 0:
            call.shard = courier.plane.seat(seat).slot
        self._at = (seat, remote.life[0])
        self._left -= 1
        self._cancel = remote.promise.cancel
        remote.promise.then(self._told)
        return True

    def again(self, told: Callable[[Reply | None, BaseException | None], None]) -> None:
        """Bring it to whoever serves its key now, after a death."""
        self._told = told
        self._call.unclear = True  # who died may have had an answer
        courier = self._courier
        try:
            courier.check(self._call)
        except TpoError as e:
            self._left = -1
            told(None, e)
            return
        if self._left > 0:
            seat = courier.leader(self._key, self._at)
            if seat not in (courier.seat, NOBODY) and self.sent(seat):
                return
        self._left = -1  # the last of its ways
        if self._call.slot >= 0:
            self._call.shard = courier.plane.seat(courier.seat).slot
        try:
            self._cancel = run(self._here(self._call), told)
        except Exception as e:  # noqa: BLE001 - becomes the call's error
            told(None, e)

    @property
    def spent(self) -> bool:
        """Whether it was brought often enough."""
        return self._left <= 0

    def cancel(self) -> None:
        """Nobody waits any more."""
        cancel, self._cancel = self._cancel, None
        if cancel is not None:
            cancel()

    def _first(self, reply: Reply | None, error: BaseException | None) -> None:
        """The outcome, before the client has anything."""
        out = self.out
        if out.done:
            if reply is not None and reply.stream is not None:
                reply.stream.cancel()
        elif reply is not None:
            self._cancel = None
            if reply.stream is not None:
                reply.stream = _Carried(self, reply, reply.stream)
            self.out = _KEPT
            out.resolve(reply)
        elif isinstance(error, WorkerLost | Bounced) and self._left >= 0:
            self.again(self._first)
        else:
            out.reject(error or RuntimeError("no outcome"))


_KEPT: Final[Promise[Any]] = Promise()
"""Stands for promises that were kept."""


class _Carried(Spliced):
    """A stream from another shard, which may begin again at a third."""

    __slots__ = ("_check", "_errand", "_error", "_had", "_later", "_reply", "_size")

    def __init__(self, errand: _Errand, reply: Reply, origin: Stream) -> None:
        super().__init__(origin)
        self._errand = errand
        self._reply: Reply | None = reply
        self._later: Reply | None = None
        self._had: list[bytes] = []
        self._size = 0
        self._check: Prefix | None = None
        self._error: TpoError | None = None

    def cancel(self) -> None:
        super().cancel()
        self._over()

    def stop_looking(self) -> None:
        """Nobody waits for a third shard."""
        self._errand.cancel()

    # -- Sink ---------------------------------------------------------------------------------

    def data(self, chunk: bytes) -> None:
        sink = self._sink
        if sink is None:
            return
        if self._check is not None:
            try:
                chunk = self._check.feed(chunk)
            except DifferentError:
                self._differs()
                return
            if not chunk:
                return
        self._size += len(chunk)
        if self._size <= KEPT_BYTES:
            self._had.append(chunk)
        else:
            self._had.clear()
        sink.data(chunk)

    def end(self, error: TpoError | None) -> None:
        sink, reply, later = self._sink, self._reply, self._later
        if sink is None:
            return
        if isinstance(error, WorkerLost) and self._may_begin_again():
            self._error, self._origin = error, None
            self._check = Prefix(b"".join(self._had)) if self._size else None
            self._errand.again(self._began_again)
            return
        if error is None and self._check is not None and not self._check.found:
            error = self._error
        if later is not None and reply is not None:
            reply.usage, reply.finish_reason = later.usage, later.finish_reason
        self._over()
        sink.end(error)

    def _may_begin_again(self) -> bool:
        if self._errand.spent:
            return False
        if not self._size:
            return True
        # What was sent must end with an event: the rest of half a one cannot come.
        had = self._had
        return self._errand.sure and bool(had) and Prefix.is_whole(b"".join(had[-2:]))

    def _began_again(self, reply: Reply | None, error: BaseException | None) -> None:
        sink = self._sink
        if sink is None:
            if reply is not None and reply.stream is not None:
                reply.stream.cancel()
        elif reply is None or reply.stream is None:
            first = self._error
            failed = error if isinstance(error, TpoError) and not self._size else None
            self._over()
            sink.end(failed or first)
        else:
            self._later = reply
            self.follow(reply.stream)

    def _differs(self) -> None:
        """What comes is another answer."""
        sink, origin = self._sink, self._origin
        error = self._error
        self._over()
        if origin is not None:
            origin.cancel()
        if sink is not None:
            sink.end(error)

    def _over(self) -> None:
        self._sink = self._origin = self._reply = self._later = None
        self._had.clear()
