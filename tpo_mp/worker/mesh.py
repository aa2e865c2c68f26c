"""Calls forwarded to the shard that holds their session, and served for others.

The owner (A) keeps the client; the server (B) runs the chain.  A's side of a forwarded call is a
``Remote``: a promise of a reply, then the stream itself.  B's side is a ``Served``: the sink of the
reply, writing frames back.

Flow control: B may have ``credit_bytes`` of one call under way; at zero it pauses that upstream.
A grants credit back as its client takes bytes.  Frames a full ring refused wait in ``Served`` (one
read's worth, since the upstream is paused) and go out when the ring drains; so do ``tell``'s here.

A damaged ring has lost its reader something nobody can name: whoever reads it gives up every call
on it before it takes one more record, and sends BROKEN, so that the other side gives up too.

Invariants: the reader always drains; only *new* calls are refused; END follows the last DATA; no
stream goes on over a hole; when the peer dies, A's calls fail with ``WorkerLost`` and B's are
cancelled within 50 ms.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from time import monotonic
from zlib import crc32

import msgspec

from tpo_mp.errors import Fault, Shed, WorkerLost
from tpo_mp.shm import frames
from tpo_mp.shm.frames import HEAD, Kind
from tpo_mp.shm.registry import Registry, RegistryWriter
from tpo_mp.types import NO_DEADLINE, Call, Dialect, Priority

from .links import Links
from .placing import Placing
from .remote import Remote
from .served import Serve, Served

_encode = msgspec.msgpack.Encoder().encode
_decode_call = msgspec.msgpack.Decoder(frames.CallFrame).decode
_decode_credit = msgspec.msgpack.Decoder(frames.CreditFrame).decode
_decode_reply = msgspec.msgpack.Decoder(frames.ReplyFrame).decode
_decode_end = msgspec.msgpack.Decoder(frames.EndFrame).decode


class Mesh:
    """Both sides of forwarding for one shard."""

    def __init__(
        self,
        *,
        links: Links,
        placing: Placing,
        registry: Registry,
        writer: RegistryWriter,
        seat: int,
        serving: Callable[[int, bytes], Serve],
        credit_bytes: int,
        inline_bytes: int,
        on_busy: Callable[[], None],
        on_crash: Callable[[BaseException], None] = lambda _error: None,
    ) -> None:
        """``serving`` names the chain of a config epoch: a call is served as it was admitted.

        Calls that were brought for their key enter it where calls of a key are shared.
        """
        self.links = links
        self._placing = placing
        self._registry = registry
        self._writer = writer
        self._seat = seat
        self._serving = serving
        self.credit_bytes = credit_bytes
        self._inline_bytes = min(inline_bytes, links.max_record // 2)
        self._next = 0
        self._remotes: dict[tuple[int, int], Remote] = {}
        self._served: dict[tuple[int, int], Served] = {}
        self.blocked: set[Served] = set()
        self._untold: dict[int, deque[bytes]] = {}
        self._on_busy = on_busy
        self.on_death: Callable[[Call, float], None] = lambda _call, _began_at: None
        """Told each call that was open at another shard when it died, and since when."""
        self.on_crash = on_crash

    @property
    def busy(self) -> bool:
        """Whether calls are under way on the mesh, so that waits must be short."""
        return bool(self._remotes or self._served or self._untold)

    def tell(self, seat: int, kind: Kind, number: int) -> None:
        """Send a control frame without a payload; what a full ring refuses goes later."""
        record = HEAD.pack(kind, number)
        untold = self._untold.get(seat)
        if untold is not None:
            untold.append(record)
        elif not self.links.send(seat, record, control=True):
            self._untold[seat] = deque([record])
            self._on_busy()

    # -- owner's side -------------------------------------------------------------------------

    def forward(self, call: Call, seat: int, epoch: int, key: bytes = b"") -> Remote | None:
        """Send a call to ``seat``; ``None`` when its body cannot travel.  Raises ``Shed``.

        ``epoch`` is the config's under which the call was admitted; ``key`` is why it goes there,
        if that is not its session.
        """
        body, offset, crc = call.body, 0, 0
        length = len(body)
        if length > self._inline_bytes:
            if call.slot < 0:
                return None
            offset, kept = self._writer.body_ref(call.slot)
            # A stage may have made another body of what the arena holds.
            if kept != length or (
                key and self._registry.read_body(self._seat, offset, length) != body
            ):
                return None
            crc = crc32(body)
            body = b""
        self._next = number = self._next + 1 & 0xFFFFFFFF
        budget_s = 0.0 if call.deadline == NO_DEADLINE else max(call.deadline - monotonic(), 0.001)
        frame = frames.CallFrame(
            call.id,
            epoch,
            self._placing.version,
            call.model,
            call.stream,
            call.dialect,
            call.tenant,
            call.key_id,
            call.session,
            call.affinity,
            int(call.priority),
            budget_s,
            call.client_request_id,
            call.authorization,
            call.forward,
            call.usage_wanted,
            body,
            offset,
            length,
            crc,
            call.peer,
            call.patience_s,
            call.reuse,
            key,
            call.sdk_try,
            call.unsaid,
        )
        if not self.links.push(seat, HEAD.pack(Kind.CALL, number), _encode(frame)):
            raise Shed(
                "the shard that holds this session is overloaded",
                reason="ring_full",
                retry_after_s=1,
            )
        remote = Remote(self, call, seat, number, self.links.life_of(seat))
        self._remotes[seat, number] = remote
        self._on_busy()
        return remote

    def forget(self, remote: Remote) -> None:
        """The call is over on this side."""
        self._remotes.pop((remote.seat, remote.number), None)

    # -- frames in ----------------------------------------------------------------------------

    def take(self, source: int, kind: int, number: int, payload: memoryview) -> bool:
        """Handle one frame if it is the mesh's; answers whether it was."""
        if kind == Kind.DATA:
            remote = self._remotes.get((source, number))
            if remote is not None:
                remote.data(bytes(payload))
        elif kind == Kind.CREDIT:
            served = self._served.get((source, number))
            if served is not None:
                served.grant(_decode_credit(payload).n)
        elif kind == Kind.REPLY:
            remote = self._remotes.get((source, number))
            if remote is not None:
                remote.replied(_decode_reply(payload))
        elif kind == Kind.END:
            remote = self._remotes.get((source, number))
            if remote is not None:
                remote.ended(_decode_end(payload))
        elif kind == Kind.CALL:
            self._called(source, number, _decode_call(payload))
        elif kind == Kind.CANCEL:
            served = self._served.get((source, number))
            if served is not None:
                served.cancel()
        elif kind == Kind.BOUNCE:
            remote = self._remotes.pop((source, number), None)
            if remote is not None:
                remote.bounced()
        elif kind == Kind.BROKEN:
            self._give_up(source)
        else:
            return False
        return True

    # -- server's side ------------------------------------------------------------------------

    def _called(self, source: int, number: int, frame: frames.CallFrame) -> None:
        placing = self._placing
        placing.refresh()
        if (
            frame.map_version < placing.version
            and not frame.key
            and frame.affinity is not None
            and placing.seat_of(frame.tenant, frame.affinity) != self._seat
        ):
            self.tell(source, Kind.BOUNCE, number)
            return
        served = Served(self, source, number, self.links.life_of(source))
        self._served[source, number] = served
        self._on_busy()
        call = Call(
            id=frame.call_id,
            model=frame.model,
            body=frame.body,
            stream=frame.stream,
            started_at=monotonic(),
        )
        call.dialect = Dialect(frame.dialect)
        call.tenant, call.key_id = frame.tenant, frame.key_id
        call.session, call.affinity = frame.session, frame.affinity
        call.priority = Priority(frame.priority)
        call.client_request_id = frame.client_request_id
        call.authorization, call.forward = frame.authorization, frame.forward
        call.peer = frame.peer
        call.patience_s, call.reuse = frame.patience_s, frame.reuse
        call.usage_wanted, call.sdk_try = frame.usage_wanted, frame.sdk_try
        call.unsaid = frame.unsaid
        if frame.budget_s:
            call.deadline = call.started_at + frame.budget_s
        if not frame.body and not self._fetch_body(call, source, frame):
            served.refuse(call, WorkerLost("the call's body is gone", reason="body_gone"))
            return
        served.start(call, self._serving(frame.config_epoch, frame.key))

    def _fetch_body(self, call: Call, source: int, frame: frames.CallFrame) -> bool:
        """Copy the body out of the owner's arena; False when it is another call's by now."""
        # The owner may have given the call up, and its pages away, before this frame was read.
        try:
            call.body = self._registry.read_body(source, frame.arena_offset, frame.body_length)
        except Fault:
            return False
        return crc32(call.body) == frame.body_crc

    def finished(self, served: Served) -> None:
        """A served call is over."""
        self._served.pop((served.seat, served.number), None)
        self.blocked.discard(served)

    # -- clock --------------------------------------------------------------------------------

    def tick(self) -> None:
        """Retry what a full ring refused, and notice peers that died or rings that broke."""
        for served in list(self.blocked):
            served.flush()
        life_of = self.links.life_of
        for remote in list(self._remotes.values()):
            if remote.life != life_of(remote.seat):
                self.on_death(remote.call, remote.began_at)
                remote.lost("the shard that served this call died")
            else:
                remote.tick()
        for served in list(self._served.values()):
            if served.life != life_of(served.seat):
                served.cancel()
        self._tell_again()

    def _tell_again(self) -> None:
        for seat, untold in list(self._untold.items()):
            while untold and self.links.send(seat, untold[0], control=True):
                untold.popleft()
            # A dead seat's ring is emptied for its successor, which ignores what is not its own.
            if not untold:
                del self._untold[seat]

    def damaged(self, source: int) -> None:
        """Something that ``source`` sent is lost."""
        self.tell(source, Kind.BROKEN, 0)
        self._give_up(source)

    def _give_up(self, seat: int) -> None:
        for remote in [r for r in self._remotes.values() if r.seat == seat]:
            remote.lost("a shared-memory record was damaged")
        for served in [s for s in self._served.values() if s.seat == seat]:
            served.cancel()
