"""Brings a call to the one shard of the host where its like are served.

The key's own bytes name a bucket of the slot map, and so a seat.  While no living shard sits there,
the next bytes name another: all shards choose the same.

When that shard dies before it answered, the call is brought to the next, where the first to come
begins anew and the others join it.  Its slot is passed over then, whether somebody sits there again
or not: they are brought one after the other, and must not part over who is back meanwhile.

A stream that its client has a part of goes on only if the answer is certain to be the same and what
the client has comes again; else it ends with the error.

Invariants: a call is brought ``MAX_PLACINGS`` times at most, then it is served here; at most
``KEPT_BYTES`` of a stream are kept for the comparison; each call has one outcome.
Known weakness: what is longer than ``rings.inline_bytes`` travels by reference to the owner's
memory, so such a call that was forwarded by its session is served where it is.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection
from typing import Any, Final, TypeAlias

from tpo_mp.errors import Shed, TpoError, WorkerLost
from tpo_mp.pipeline.prefix import DifferentError, Prefix
from tpo_mp.pipeline.promise import Promise, run
from tpo_mp.shm.plane import BUCKETS, NO_SEAT, NO_SLOT, Plane, SeatState
from tpo_mp.types import Call, Reply, Sink, Stream

from .mesh import Mesh
from .placing import Placing
from .remote import Bounced

MAX_PLACINGS: Final = 3
KEPT_BYTES: Final = 1 << 20
_SERVING: Final = (SeatState.READY, SeatState.DRAINING)
Here: TypeAlias = Callable[[Call], Awaitable[Reply]]


class Courier:
    """One shard's way to where calls of a key are served."""

    def __init__(
        self,
        *,
        mesh: Mesh,
        placing: Placing,
        plane: Plane,
        seat: int,
        check: Callable[[Call], None],
    ) -> None:
        """``check`` raises when a call must not be tried again (``Poison.check``)."""
        self.mesh = mesh
        self.plane = plane
        self.check = check
        self.seat = seat
        self._placing = placing

    def home(self, key: bytes, lost: Collection[int] = ()) -> int:
        """The seat that serves a key (of 8 bytes and more) now; ``lost`` are slots to pass over."""
        seats = self._placing.seats()
        for at in range(0, 8, 2):
            seat = seats[int.from_bytes(key[at : at + 2], "big") % BUCKETS]
            if seat == self.seat:
                return seat
            if seat == NO_SEAT:
                continue
            line = self.plane.seat(seat)
            if line.state in _SERVING and line.slot not in lost:
                return seat
        return self.seat

    def bring(
        self, call: Call, key: bytes, epoch: int, sure: bool, here: Here
    ) -> Awaitable[Reply] | None:
        """Have a call answered where its key lives; ``None``: that is here."""
        if self.plane.workers == 1:
            return None
        seat = self.home(key)
        if seat == self.seat:
            return None
        errand = _Errand(self, call, key, epoch, sure, here)
        return errand.out if errand.sent(seat) else None


class _Errand:
    """One call that another shard serves."""

    __slots__ = ("_at", "_call", "_cancel", "_courier", "_epoch", "_here", "_key", "_left",
                 "_lost", "_told", "out", "sure")  # fmt: skip

    def __init__(
        self, courier: Courier, call: Call, key: bytes, epoch: int, sure: bool, here: Here
    ) -> None:
        self._courier = courier
        self._call = call
        self._key = key
        self._epoch = epoch
        self._here = here
        self._left = MAX_PLACINGS
        self._at = (NO_SEAT, NO_SLOT, (0, 0))
        """Seat, slot and life of the shard that has it."""
        self._lost: tuple[int, ...] = ()
        """Slots whose shards died while they had it."""
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
        slot = courier.plane.seat(seat).slot
        if call.slot >= 0:
            call.shard = slot
        self._at = (seat, slot, remote.life)
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
        last, slot, life = self._at
        if courier.mesh.links.life_of(last) != life:
            self._lost += (slot,)
        seat = courier.home(self._key, self._lost)
        if seat != courier.seat and self._left > 0 and self.sent(seat):
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


class _Carried:
    """A stream from another shard, which may begin again at a third."""

    __slots__ = ("_check", "_errand", "_error", "_had", "_later", "_origin", "_paused", "_reply",
                 "_sink", "_size")  # fmt: skip

    def __init__(self, errand: _Errand, reply: Reply, origin: Stream) -> None:
        self._errand = errand
        self._reply: Reply | None = reply
        self._origin: Stream | None = origin
        self._later: Reply | None = None
        self._sink: Sink | None = None
        self._paused = False
        self._had: list[bytes] = []
        self._size = 0
        self._check: Prefix | None = None
        self._error: TpoError | None = None

    # -- Stream -------------------------------------------------------------------------------

    def attach(self, sink: Sink) -> None:
        self._sink = sink
        if self._origin is not None:
            self._origin.attach(self)

    def pause(self) -> None:
        self._paused = True
        if self._origin is not None:
            self._origin.pause()

    def resume(self) -> None:
        self._paused = False
        if self._origin is not None:
            self._origin.resume()

    def cancel(self) -> None:
        origin = self._origin
        self._over()
        if origin is not None:
            origin.cancel()
        else:
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
            self._later, self._origin = reply, reply.stream
            reply.stream.attach(self)
            if self._paused and self._origin is not None:
                self._origin.pause()

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
