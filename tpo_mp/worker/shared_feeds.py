"""Native streams across shards: any worker can follow a call or a session of any other.

::

    follower B                                     owner A
    FOLLOW   call after number n, or session  →
                                              ←   FOLLOWED  known here, or why not
                                              ←   EVENT     … as far as the credit goes
    EVENT_CREDIT  bytes the client took       →
    UNFOLLOW                                  →

The call's id names its owner; a session's calls may be owned by any shard, so all are followed.

Invariants: B holds at most ``CREDIT_BYTES`` of events its client has not taken; A's end is an
ordinary ``Listener``, cut off like any other when it lags; what a full ring refuses is tried again,
in order; when A dies, or its ring is damaged, followers of its calls get an error event and those
of sessions follow its successor, from B's next beat on; when B dies, its listeners leave within
50 ms.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from time import monotonic
from typing import Any

import msgspec

from tpo_mp.errors import Shed, TpoError, WorkerLost, from_wire
from tpo_mp.pipeline.feed import FINAL, UNNUMBERED, Listener, error_data
from tpo_mp.pipeline.feeds import Feeds
from tpo_mp.shm import frames
from tpo_mp.shm.callid import CallIds
from tpo_mp.shm.frames import HEAD, Kind
from tpo_mp.shm.plane import Plane, SeatState

from .links import Links

CREDIT_BYTES = 65536
GRANT_BYTES = 16384
MAX_FAR = 16_384
ANSWER_S = 1.0
HEARD_S = 0.25
_ROOM = 256
_POLL_S = 0.05
_SERVING = (SeatState.READY, SeatState.DRAINING)
_encode = msgspec.msgpack.Encoder().encode
_decode_follow = msgspec.msgpack.Decoder(frames.FollowFrame).decode
_decode_followed = msgspec.msgpack.Decoder(frames.FollowedFrame).decode
_decode_event = msgspec.msgpack.Decoder(frames.EventFrame).decode
_decode_credit = msgspec.msgpack.Decoder(frames.CreditFrame).decode

Life = tuple[int, int]


class FarListener(Listener):
    """A's end: what a listener of another shard is told."""

    def __init__(self, feeds: SharedFeeds, seat: int, number: int, *, once: bool) -> None:
        super().__init__()
        self.seat = seat
        self.number = number
        self.life = feeds.links.life_of(seat)
        self.pending: deque[bytes] = deque()
        self.key: tuple[str, str] | None = None
        self._feeds = feeds
        self._credit = CREDIT_BYTES
        self._once = once
        self._told = False

    def take(self, call_id: str, number: int, name: str, data: bytes) -> None:
        most = self._feeds.links.max_record - HEAD.size - _ROOM
        for at in range(0, len(data) or 1, most):
            more = at + most < len(data)
            self.pending.append(
                _encode(frames.EventFrame(call_id, number, name, data[at : at + most], more))
            )
        self._told = self._told or name in FINAL
        self.flush()

    def grant(self, n: int) -> None:
        """The client took ``n`` bytes."""
        self._credit += n
        self.flush()

    def flush(self) -> None:
        """Send what waits, as far as credit and ring go."""
        pending, links = self.pending, self._feeds.links
        head = HEAD.pack(Kind.EVENT, self.number)
        while pending and self._credit > 0 and links.push(self.seat, head, pending[0]):
            self._credit -= len(pending.popleft())
        if pending or self._credit <= 0:
            if not self.blocked:
                self.block()
            if pending and self._credit > 0:
                self._feeds.on_busy()
        elif self._once and self._told:
            self._feeds.forget(self)
        elif self.blocked:
            self.unblock()


class Subscription:
    """B's end: events of one shard for one listener; a ``Source``."""

    def __init__(
        self, feeds: SharedFeeds, seat: int, number: int, listener: Listener, call_id: str
    ) -> None:
        """``call_id`` is empty when it is about a session."""
        self.seat = seat
        self.number = number
        self.life = feeds.links.life_of(seat)
        self.listener = listener
        self.call_id = call_id
        self.answer: asyncio.Future[bool] | None = None
        self._feeds = feeds
        self._parts: list[bytes] = []
        self._owed = 0

    def told(self, frame: frames.EventFrame, size: int) -> None:
        """An event arrived, or a piece of one."""
        self._owed += size
        self._parts.append(frame.data)
        if not frame.more:
            data = b"".join(self._parts)
            self._parts.clear()
            if self.call_id and frame.name in FINAL:
                self._feeds.drop(self)
            self.listener.take(frame.call_id, frame.number, frame.name, data)
        if self._owed >= GRANT_BYTES and not self.listener.blocked:
            self.room()

    def room(self) -> None:
        """Let the other shard send more."""
        record = HEAD.pack(Kind.EVENT_CREDIT, self.number) + _encode(frames.CreditFrame(self._owed))
        if self._owed and self._feeds.links.send(self.seat, record, control=True):
            self._owed = 0

    def tick(self) -> None:
        """Grant what a full ring refused to take."""
        if self._owed >= GRANT_BYTES and not self.listener.blocked:
            self.room()

    def leave(self) -> None:
        """The listener wants no more."""
        self._feeds.drop(self)
        if self.life == self._feeds.links.life_of(self.seat):
            self._feeds.tell_unfollow(self.seat, self.number)

    def lost(self, why: str) -> None:
        """The other shard is gone, or something it sent is."""
        self._feeds.drop(self)
        if self.answer is not None and not self.answer.done():
            self.answer.set_result(False)
        elif self.call_id:
            error = WorkerLost(why, reason="worker_lost")
            self.listener.take(self.call_id, UNNUMBERED, "error", error_data(error, self.call_id))


class SharedFeeds(Feeds):
    """The feeds of one shard, and its way to those of the others."""

    def __init__(
        self, *, links: Links, plane: Plane, seat: int, on_busy: Callable[[], None], **options: Any
    ) -> None:
        super().__init__(**options)
        self.links = links
        self.on_busy = on_busy
        self._plane = plane
        self._seat = seat
        # Two more seats than slots may hold shards: the spare, and one that is being replaced.
        self._shards = min(plane.workers + 2, plane.seats - 1)
        self._serving: list[Life | None] = []
        self._number = 0
        self._far: dict[tuple[int, int], FarListener] = {}
        self._subscriptions: dict[tuple[int, int], Subscription] = {}
        self._sessions: dict[Listener, tuple[str, str, dict[int, Subscription]]] = {}
        self._untold: deque[tuple[int, bytes]] = deque()

    @property
    def busy(self) -> bool:
        """Whether something waits for room in a ring."""
        return bool(self._untold) or any(far.pending for far in self._far.values())

    # -- following ----------------------------------------------------------------------------

    async def follow(self, call_id: str, listener: Listener, tenant: str, after: int) -> bool:
        if await super().follow(call_id, listener, tenant, after):
            return True
        place = CallIds.parse(call_id)
        if place is None or not self._serves(place.seat) or place.seat == self._seat:
            return False
        if self.links.life_of(place.seat)[0] != place.epoch:
            return False
        subscription = self._subscribe(
            place.seat, listener, frames.FollowFrame(call_id, "", tenant, after)
        )
        if subscription is None:
            raise Shed("the shard of that call is overloaded", reason="ring_full", retry_after_s=1)
        answer: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        subscription.answer = answer
        until = monotonic() + ANSWER_S
        try:
            while not answer.done() and monotonic() < until:
                await asyncio.wait([answer], timeout=_POLL_S)
            if answer.done():
                return answer.result()
        except BaseException:
            subscription.leave()
            raise
        subscription.leave()
        raise Shed("the shard of that call does not answer", reason="busy", retry_after_s=1)

    def follow_session(self, session: str, listener: Listener, tenant: str) -> None:
        super().follow_session(session, listener, tenant)
        self._sessions[listener] = (session, tenant, {})
        if not self._follow_everywhere(listener):
            self._serving = []

    async def heard(self, listener: Listener) -> None:
        loop = asyncio.get_running_loop()
        answers = []
        # Asked in this very turn of the loop, nobody can have answered yet.
        for subscription in self._sessions[listener][2].values():
            subscription.answer = loop.create_future()
            answers.append(subscription.answer)
        if answers:
            await asyncio.wait(answers, timeout=HEARD_S)

    def unfollow_session(self, session: str, listener: Listener, tenant: str) -> None:
        self._sessions.pop(listener, None)
        super().unfollow_session(session, listener, tenant)

    def _follow_everywhere(self, listener: Listener) -> bool:
        """Follow a session on every shard; False when one could not be asked yet."""
        session, tenant, known = self._sessions[listener]
        asked = True
        for seat in range(self._shards):
            if seat == self._seat or not self._serves(seat):
                continue
            life = self.links.life_of(seat)
            if seat in known and known[seat].life == life and self._has(known[seat]):
                continue
            frame = frames.FollowFrame("", session, tenant, UNNUMBERED)
            subscription = self._subscribe(seat, listener, frame)
            if subscription is not None:
                known[seat] = subscription
            else:
                asked = False
        return asked

    def _serves(self, seat: int) -> bool:
        return seat < self._shards and self._plane.seat(seat).state in _SERVING

    def _has(self, subscription: Subscription) -> bool:
        return (subscription.seat, subscription.number) in self._subscriptions

    def _subscribe(
        self, seat: int, listener: Listener, frame: frames.FollowFrame
    ) -> Subscription | None:
        self._number = number = self._number + 1 & 0xFFFFFFFF
        if not self.links.push(seat, HEAD.pack(Kind.FOLLOW, number), _encode(frame)):
            return None
        subscription = Subscription(self, seat, number, listener, frame.call_id)
        self._subscriptions[seat, number] = subscription
        listener.sources.add(subscription)
        return subscription

    def drop(self, subscription: Subscription) -> None:
        """A subscription is over on this side."""
        self._subscriptions.pop((subscription.seat, subscription.number), None)
        subscription.listener.sources.discard(subscription)

    def tell_unfollow(self, seat: int, number: int) -> None:
        """Say that nobody listens any more; what a full ring refuses goes later."""
        record = HEAD.pack(Kind.UNFOLLOW, number)
        if self._untold or not self.links.send(seat, record, control=True):
            self._untold.append((seat, record))
            self.on_busy()

    # -- frames in ----------------------------------------------------------------------------

    def take(self, source: int, kind: int, number: int, payload: memoryview) -> bool:
        """Handle one frame if it is ours; answers whether it was."""
        if kind == Kind.EVENT:
            subscription = self._subscriptions.get((source, number))
            if subscription is not None:
                subscription.told(_decode_event(payload), len(payload))
        elif kind == Kind.EVENT_CREDIT:
            far = self._far.get((source, number))
            if far is not None:
                far.grant(_decode_credit(payload).n)
        elif kind == Kind.FOLLOW:
            self._followed(source, number, _decode_follow(payload))
        elif kind == Kind.FOLLOWED:
            self._answered(source, number, _decode_followed(payload))
        elif kind == Kind.UNFOLLOW:
            far = self._far.get((source, number))
            if far is not None:
                self.forget(far)
        else:
            return False
        return True

    def _followed(self, source: int, number: int, frame: frames.FollowFrame) -> None:
        far = FarListener(self, source, number, once=bool(frame.call_id))
        try:
            if len(self._far) >= MAX_FAR:
                raise Shed("too many listen", reason="too_many_listeners", retry_after_s=5)
            if not frame.call_id:
                self._far[source, number] = far
                far.key = (frame.session, frame.tenant)
                super().follow_session(frame.session, far, frame.tenant)
                self._tell_followed(source, number, frames.FollowedFrame(True, None, False))
                return
            feed = self.find(frame.call_id, frame.tenant, frame.after)
            over = feed is not None and feed.final is not None and frame.after + 1 >= feed.end
            self._tell_followed(source, number, frames.FollowedFrame(feed is not None, None, over))
            if feed is not None and not over:
                self._far[source, number] = far
                feed.add(far, frame.after)
        except TpoError as e:
            self._far.pop((source, number), None)
            if frame.call_id:
                self._tell_followed(source, number, frames.FollowedFrame(False, e.to_wire()))

    def _tell_followed(self, seat: int, number: int, frame: frames.FollowedFrame) -> None:
        # Refused by a full ring it is not told: the other side waits for it a second at most.
        record = HEAD.pack(Kind.FOLLOWED, number) + _encode(frame)
        self.links.send(seat, record, control=True)

    def _answered(self, source: int, number: int, frame: frames.FollowedFrame) -> None:
        subscription = self._subscriptions.get((source, number))
        if subscription is None or subscription.answer is None or subscription.answer.done():
            return
        if frame.over or not frame.found:
            self.drop(subscription)
        if frame.error is None:
            subscription.answer.set_result(frame.found)
        else:
            subscription.answer.set_exception(from_wire(frame.error))

    def forget(self, far: FarListener) -> None:
        """A listener of another shard is gone, or was told everything."""
        self._far.pop((far.seat, far.number), None)
        far.pending.clear()
        if far.key is not None:
            session, tenant = far.key
            super().unfollow_session(session, far, tenant)
        else:
            far.leave()

    # -- clock --------------------------------------------------------------------------------

    def tick(self, now: float) -> None:
        """Retry what a full ring refused, and notice peers that died or were replaced."""
        super().tick(now)
        if self._far or self._subscriptions or self._sessions:
            self._look_around()
        while self._untold and self.links.send(*self._untold[0], control=True):
            self._untold.popleft()

    def _look_around(self) -> None:
        lives = [self.links.life_of(seat) for seat in range(self._shards)]
        for far in list(self._far.values()):
            if far.life != lives[far.seat]:
                self.forget(far)
            elif far.pending:
                far.flush()
        for subscription in list(self._subscriptions.values()):
            if subscription.life != lives[subscription.seat]:
                subscription.lost("the shard of this stream died")
            else:
                subscription.tick()
        serving = [life if self._serves(seat) else None for seat, life in enumerate(lives)]
        if serving != self._serving:
            self._serving = serving
            for listener in list(self._sessions):
                if not self._follow_everywhere(listener):
                    self._serving = []

    def damaged(self, source: int) -> None:
        """Something that ``source`` sent is lost."""
        for subscription in [s for s in self._subscriptions.values() if s.seat == source]:
            self.tell_unfollow(source, subscription.number)
            subscription.lost("a shared-memory record was damaged")
        self._serving = []
        for far in [f for f in self._far.values() if f.seat == source]:
            self.forget(far)
