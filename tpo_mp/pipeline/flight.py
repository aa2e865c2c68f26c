"""One upstream call for all that ask the same at the same time.

A ``Flight`` is such a call under way; its ``Rider``s are the calls that wait for it, the one that
began it among them.  None of them leads: the flight asks with a copy of the first one's call, so
that whoever leaves leaves alone, and the last to leave takes the upstream call along.

A stream is kept from its first byte for who comes late, up to ``PREFIX_BYTES``; then nobody joins
any more and only what the slowest has not taken is kept.  Each rider takes at its own pace: the
upstream waits when all of them do.  Who falls ``LAG_BYTES`` behind while others go on is cut off.

The rider that has been aboard longest pays: its call counts the attempts and books the usage.  When
it leaves, the next one does.

When the last one left because its SDK waits no longer, it will ask again: the flight goes on
without it for ``linger_s``, and takes it in when it comes.  Who comes pays.

A flight that fails because the time of its first rider is up begins again for those who have more.

Invariants: riders never see a byte twice, or miss one; each is told one outcome; bytes kept by all
flights of a ``Flights`` stay below ``KEPT_BYTES`` plus what a slow rider may lag; a key is in the
index only while a flight can be joined.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from typing import TYPE_CHECKING, Final

from tpo_mp.errors import DeadlineExceeded, Shed, TpoError
from tpo_mp.types import Call, Reply, Sink, Stream

from .promise import Promise, run
from .spending import paid_by

if TYPE_CHECKING:
    from .flights import Flights

PREFIX_BYTES: Final = 1 << 20
LAG_BYTES: Final = 1 << 20
AT_ONCE: Final = 64
"""Riders that are served in one turn of the loop; others wait their turn behind other calls."""
CROWDED_LAG_BYTES: Final = 1 << 16
"""How far behind one may be when all flights together keep too much."""
COALESCED: Final = "coalesced"
_KEPT: Final[Promise[Reply]] = Promise()
"""Stands for promises that were kept: one that holds its rider's reply would be a circle."""
_NOTHING: Final[list[bytes]] = []
"""The pieces of what is no stream; nobody adds to them."""
_OUT_OF_TIME: Final = frozenset({"queue_too_long", "queue_timeout"})


class Rider:
    """One call that waits for a flight; the ``Stream`` of its reply, if that is one."""

    __slots__ = ("_flushing", "_sink", "at", "call", "flight", "joined_at", "out", "paused",
                 "reply", "taken")  # fmt: skip

    def __init__(self, flight: Flight, call: Call, now: float) -> None:
        self.flight: Flight | None = flight
        self.call = call
        self.joined_at = now
        self.out: Promise[Reply] = Promise(self.leave)
        self.reply: Reply | None = None
        self.paused = False
        self.at = 0
        """Number of the next piece."""
        self.taken = 0
        self._sink: Sink | None = None
        self._flushing = False

    @property
    def takes(self) -> bool:
        """Whether bytes can go to it now."""
        return self._sink is not None and not self.paused

    def leave(self) -> None:
        """Its client is gone, or its time."""
        flight, self.flight, self._sink, self.reply = self.flight, None, None, None
        if flight is not None:
            flight.left(self)

    def resolve(self, reply: Reply) -> None:
        """Keep the promise."""
        out, self.out = self.out, _KEPT
        out.resolve(reply)

    # -- Stream -------------------------------------------------------------------------------

    def attach(self, sink: Sink) -> None:
        self._sink = sink
        self._go_on()

    def pause(self) -> None:
        if not self.paused:
            self.paused = True
            if self.flight is not None:
                self.flight.waiting += 1
                self.flight.weigh()

    def resume(self) -> None:
        if self.paused:
            self.paused = False
            if self.flight is not None:
                self.flight.waiting -= 1
            self._go_on()

    def _go_on(self) -> None:
        flight = self.flight
        self.flush()
        if flight is not None:
            flight.eased()

    def cancel(self) -> None:
        self.leave()

    # -- from the flight ----------------------------------------------------------------------

    def flush(self) -> None:
        """Send what it has not seen, then the end."""
        flight, sink = self.flight, self._sink
        if flight is None or sink is None or self._flushing:
            return
        self._flushing = True
        try:
            # What takes a piece may pause, or leave.
            while not self.paused and self.flight is not None:
                piece = flight.piece(self.at)
                if piece is None:
                    if flight.ended:
                        self.end(flight.error)
                    return
                self.at += 1
                self.taken += len(piece)
                sink.data(piece)
        finally:
            self._flushing = False

    def end(self, error: TpoError | None) -> None:
        """It is over; tell the sink when there is one."""
        flight, sink = self.flight, self._sink
        if flight is not None and sink is not None:
            self.flight, self._sink, self.reply = None, None, None
            flight.remove(self)
            sink.end(error)


class _Lingering:
    """A flight without riders, in the wheel until one comes back."""

    __slots__ = ("_flight", "deadline", "filed_at")

    def __init__(self, flight: Flight, deadline: float) -> None:
        self._flight = flight
        self.deadline = deadline
        self.filed_at = 0.0

    def expire(self) -> None:
        """Its time is up."""
        self._flight.unwanted(self)


class Flight:
    """One upstream call and who waits for it; the sink of its stream."""

    __slots__ = ("_again", "_asks", "_cancel", "_first", "_flights", "_kept", "_lingering",
                 "_paused", "_pieces", "_proceed", "_reply", "_round", "_size", "_stream", "ended",
                 "error", "key", "open", "riders", "waiting")  # fmt: skip

    def __init__(
        self, flights: Flights, key: bytes, proceed: Callable[[Call], Awaitable[Reply]]
    ) -> None:
        self._flights = flights
        self._proceed = proceed
        self._asks: Call | None = None
        self._cancel: Callable[[], object] | None = None
        self._reply: Reply | None = None
        self._stream: Stream | None = None
        self._pieces = _NOTHING
        self._first = 0
        self._lingering: _Lingering | None = None
        self.key = key
        self.riders: list[Rider] = []
        self.waiting = 0
        """Riders that take nothing now."""
        self.open = True
        """Whether one may still join."""
        self.ended = False

    def _flows(self, reply: Reply, stream: Stream) -> None:
        """The reply is a stream: what only streams need is made now."""
        self._reply, self._stream = reply, stream
        self._pieces = []
        self._size = 0
        self._kept = 0
        self._paused = False
        self._round: Iterator[Rider] | None = None
        self._again = False
        self.error: TpoError | None = None

    def add(self, call: Call) -> Promise[Reply]:
        """Take one more aboard; it is answered once ``begin`` was called."""
        rider = Rider(self, call, self._flights.clock())
        out = rider.out
        self.riders.append(rider)
        if len(self.riders) > 1 or self._asks is not None:
            call.cache = COALESCED
        self._lingering = None
        if self._reply is not None:
            self._answer(rider, self._reply)
            if self.ended:
                self.close()
        return out

    def begin(self) -> None:
        """Ask, in the name of who has been aboard longest."""
        asks = self._asks = copy_of(self.riders[0].call)
        try:
            asked = self._proceed(asks)
            cancel: Callable[[], object] | None
            if isinstance(asked, Promise):
                asked.then(self._answered)
                cancel = None if asked.done else asked.cancel
            else:
                cancel = run(asked, self._answered)
        except Exception as e:  # noqa: BLE001 - becomes the error of all
            self._answered(None, e)
        else:
            if cancel is not None and self._asks is asks:
                self._cancel = cancel

    def _answered(self, reply: Reply | None, error: BaseException | None) -> None:
        self._cancel = None
        if not self.riders and (self._lingering is None or reply is None):
            self.close()
            if reply is not None and reply.stream is not None:
                reply.stream.cancel()
            return
        if reply is None:
            self._failed(error or RuntimeError("a stage answered nothing"))
            return
        if reply.stream is None:
            if len(self.riders) == 1:
                self._give_one(reply)
            elif self.riders:
                self._give_out(reply)
            else:
                self._reply, self.ended = reply, True
            return
        self._flows(reply, reply.stream)
        for rider in tuple(self.riders):
            if rider.flight is self:  # one that was answered may have left with others
                self._answer(rider, reply)
        if self.riders or self._lingering is not None:
            reply.stream.attach(self)

    def _give_one(self, reply: Reply) -> None:
        """Give a whole reply to the only one that waits, as mostly."""
        rider = self.riders.pop()
        if self.open:
            self.open = False
            self._flights.close(self)
        rider.flight = None
        self._tell(rider, pays=True)
        out, rider.out = rider.out, _KEPT
        out.resolve(reply)

    def _give_out(self, reply: Reply) -> None:
        """Give everybody a whole reply."""
        self.close()
        riders, self.riders = self.riders, []
        for rider in riders:
            rider.flight = None
        if len(riders) > 1:
            self._flights.served(riders, reply)
        self._give(riders, 0, reply)

    def _give(self, riders: list[Rider], at: int, reply: Reply) -> None:
        """Give a whole reply to some riders, and to the rest in the loop's next turn."""
        for rider in riders[at : at + AT_ONCE]:
            if not rider.out.done:  # else it left since
                self._tell(rider, pays=rider is riders[0])
                # Whoever is given one may write on it, before the next is made.
                rider.resolve(reply if len(riders) == 1 else _whole(reply))
        at += AT_ONCE
        if at < len(riders):
            asyncio.get_running_loop().call_soon(self._give, riders, at, reply)

    def _answer(self, rider: Rider, reply: Reply) -> None:
        """Give a rider its reply, of which it is the stream."""
        if reply.stream is None:
            self._give_out(reply)
            return
        self._tell(rider, pays=rider is self.riders[0])
        rider.reply = mine = _whole(reply)
        mine.stream = rider
        rider.resolve(mine)

    def _failed(self, error: BaseException) -> None:
        asked = self._asks
        assert asked is not None
        riders, self.riders = self.riders, []
        if _lacked_time(error):
            limit, riders, aboard = _limit_s(asked), [], riders
            for rider in aboard:
                (self.riders if _limit_s(rider.call) > limit else riders).append(rider)
        if not self.riders:
            self.close()
        for rider in riders:
            rider.flight = None
        if riders:
            self._refuse(riders, 0, error, asked)
        if self.riders:
            self.begin()

    def _refuse(self, riders: list[Rider], at: int, error: BaseException, asked: Call) -> None:
        """Tell some riders of a failure, and the rest in the loop's next turn."""
        for rider in riders[at : at + AT_ONCE]:
            if not rider.out.done:  # else it left since
                self._tell(rider, pays=rider is riders[0], of=asked)
                rider.out.reject(error)
        at += AT_ONCE
        if at < len(riders):
            asyncio.get_running_loop().call_soon(self._refuse, riders, at, error, asked)

    def _tell(self, rider: Rider, *, pays: bool, of: Call | None = None) -> None:
        """Say on a rider's call what became of it, or of an earlier try that failed."""
        asked, call = of or self._asks, rider.call
        assert asked is not None
        call.backend, call.note, call.seen = asked.backend, asked.note, asked.seen
        call.unclear = call.unclear or asked.unclear
        call.attempts = asked.attempts if pays else 0
        if call.cache != COALESCED:
            call.cache = asked.cache
        if asked.first_byte_at:
            call.upstream_at = max(asked.upstream_at, rider.joined_at)
            call.first_byte_at = max(asked.first_byte_at, rider.joined_at)

    def left(self, rider: Rider) -> None:
        """A rider wants no more."""
        paid = self.riders[0] is rider
        self.remove(rider)
        if not self.riders:
            lingers = self._may_linger(rider.call)
            pays = not self.ended or rider.call.attempts > 0
            self._tell(rider, pays=pays and not lingers)
            if not lingers:
                self._give_up()
            return
        if not self.ended:
            if paid and self._reply is not None:
                rider.call.attempts = 0
                self._tell(self.riders[0], pays=True)
            self.weigh()
        if not self.open:
            self._trim()

    def _may_linger(self, call: Call) -> bool:
        """Wait for the last rider's SDK to ask again, if that is why it left."""
        flights = self._flights
        now = flights.clock()
        waited_s = now - call.started_at
        if not self.open or self.ended or waited_s < call.patience_s * 0.95 - 0.1:
            return False
        if flights.linger_s <= 0:
            return False
        self._lingering = _Lingering(self, now + flights.linger_s)
        flights.timers.add(self._lingering, now)
        return True

    def unwanted(self, lingering: _Lingering) -> None:
        """Nobody came in time; whoever came and went has seen to it."""
        if self._lingering is lingering:
            self._lingering = None
            self._give_up()

    def remove(self, rider: Rider) -> None:
        """Take it off the list."""
        self.riders.remove(rider)
        self.waiting -= rider.paused

    def eased(self) -> None:
        """A rider took something."""
        self.weigh()
        if not self.open:
            self._trim()

    def _give_up(self) -> None:
        """Nobody is left."""
        self.close()
        cancel, self._cancel = self._cancel, None
        stream, self._stream = self._stream, None
        if self._pieces:
            self._drop(len(self._pieces))
        if self.ended:
            return
        if stream is not None:
            stream.cancel()
        elif cancel is not None:
            cancel()

    def weigh(self) -> None:
        """Let the upstream wait, or go on: it waits for who is fastest."""
        stream = self._stream
        if stream is None:
            return
        paused = self.waiting >= len(self.riders)
        if paused is not self._paused:
            self._paused = paused
            if paused:
                stream.pause()
            else:
                stream.resume()

    # -- Sink of the upstream's stream --------------------------------------------------------

    def data(self, chunk: bytes) -> None:
        size = len(chunk)
        self._pieces.append(chunk)
        self._size += size
        self._kept += size
        self._flights.kept += size
        if self.open and (self._size > PREFIX_BYTES or self._flights.crowded):
            self.close()
        self._flush_all()
        if not self.open and not self.riders:
            self._give_up()
        elif not self.open:
            self._trim()
            if self._pieces:
                self._cut_off()

    def _flush_all(self) -> None:
        """Send everybody what is new; some now, the rest in the next turns of the loop."""
        if self._round is None:
            self._round = iter(tuple(self.riders))
            self._flush_some()
        else:
            self._again = True  # those that had their turn have another

    def _flush_some(self) -> None:
        going, left = self._round, AT_ONCE
        assert going is not None
        for rider in going:
            if rider.takes:
                rider.flush()
                left -= 1
                if not left:
                    asyncio.get_running_loop().call_soon(self._flush_some)
                    return
        self._round = None
        again, self._again = self._again, False
        if again:
            self._flush_all()
        elif not self.open:
            self._trim()

    def end(self, error: TpoError | None) -> None:
        """The upstream is through."""
        reply = self._reply
        assert reply is not None
        self.ended, self.error, self._stream = True, error, None
        if self.riders or self._lingering is None or error is not None:
            self.close()
        riders = tuple(self.riders)
        for rider in riders:
            if rider.reply is not None:
                rider.reply.usage = reply.usage
                rider.reply.finish_reason = reply.finish_reason
        if riders and self._asks is not None:
            paid_by(riders[0].call, self._asks)
        if error is None:
            self._flights.served(riders, reply)
        self._flush_all()
        if not self.open:
            self._trim()

    def piece(self, at: int) -> bytes | None:
        """A piece of the stream by its number, if it came yet."""
        at -= self._first
        return self._pieces[at] if at < len(self._pieces) else None

    def close(self) -> None:
        """Nobody joins any more."""
        if self.open:
            self.open = False
            self._flights.close(self)

    def _trim(self) -> None:
        """Forget what all have taken."""
        taken = min((rider.at for rider in self.riders), default=self._first + len(self._pieces))
        if taken > self._first:
            self._drop(taken - self._first)

    def _drop(self, n: int) -> None:
        size = sum(map(len, self._pieces[:n]))
        del self._pieces[:n]
        self._first += n
        self._kept -= size
        self._flights.kept -= size

    def _cut_off(self) -> None:
        """End those that lag too far behind others."""
        most = CROWDED_LAG_BYTES if self._flights.crowded else LAG_BYTES
        late = [rider for rider in self.riders if self._size - rider.taken > most]
        if late and len(late) < len(self.riders):
            for rider in late:
                paid = rider is self.riders[0]
                rider.end(
                    Shed(
                        "this answer is shared, and the client fell too far behind the others",
                        reason="too_slow",
                    )
                )
                if paid and self.riders:
                    rider.call.attempts = 0
                    self._tell(self.riders[0], pays=True)
            self.eased()


def _whole(reply: Reply) -> Reply:
    """One more of the same reply."""
    more = Reply(
        reply.status,
        reply.body,
        content_type=reply.content_type,
        headers=reply.headers,
        backend=reply.backend,
    )
    more.usage, more.finish_reason = reply.usage, reply.finish_reason
    return more


def _limit_s(call: Call) -> float:
    """When a call's time is up."""
    return min(call.deadline, call.started_at + call.patience_s)


def _lacked_time(error: BaseException) -> bool:
    """Whether a call failed only because of how long it could wait."""
    if isinstance(error, Shed):
        return error.reason in _OUT_OF_TIME
    return isinstance(error, DeadlineExceeded)


def copy_of(call: Call) -> Call:
    """A call of its own for the upstream: what happens to it happens to no client's."""
    made = call.__copy__()
    made.aside = made.endings = made.tried = None
    made.attempts = 0
    made.first_byte_at = made.upstream_at = 0.0
    made.slot = -1
    return made
