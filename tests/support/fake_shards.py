"""Shards of one host in one process: real shared memory and rings, no loop but the test's.

Nothing moves by itself: ``host.pump()`` lets every shard take what was sent, until nothing is left
to take.  A shard's upstream is ``Scripted``: the test answers its calls.
"""

from __future__ import annotations

from collections.abc import Awaitable
from random import Random
from time import monotonic
from typing import Any

import msgspec

from tests.support.fake_env import (
    FakeJournal,
    FakeLedger,
    FakeLive,
    FakeQuotas,
    FakeRoom,
    FakeShares,
)  # fmt: skip
from tests.support.fake_gateway import FakeExchange
from tests.support.fake_net import FakeLoop
from tpo_mp.config import load
from tpo_mp.config.sections import StreamsSection
from tpo_mp.http.endpoints import Endpoint
from tpo_mp.http.head import Head
from tpo_mp.http.wheel import Wheel
from tpo_mp.pipeline.delivery import Delivery
from tpo_mp.pipeline.poison import Poison
from tpo_mp.pipeline.promise import Promise
from tpo_mp.ports import Env
from tpo_mp.shm import frames
from tpo_mp.shm.cache import CacheSegment, SharedCache
from tpo_mp.shm.claims import ClaimSegment, SharedClaims
from tpo_mp.shm.doorbell import Doorbell
from tpo_mp.shm.frames import HEAD, Kind
from tpo_mp.shm.metrics import MetricsArena
from tpo_mp.shm.plane import BUCKETS, Command, Plane, SeatState
from tpo_mp.shm.registry import Registry
from tpo_mp.shm.registry_layout import RegistryGeometry
from tpo_mp.shm.ring import RingMesh
from tpo_mp.shm.rows import RowTable
from tpo_mp.shm.segment import Segment
from tpo_mp.store.client import StoreClient
from tpo_mp.types import STAGES, Call, Reply
from tpo_mp.worker.account import Account
from tpo_mp.worker.asyncs import Asyncs
from tpo_mp.worker.backgrounds import Backgrounds
from tpo_mp.worker.build import build
from tpo_mp.worker.cancels import Cancels
from tpo_mp.worker.courier import Courier
from tpo_mp.worker.job_calls import JobCalls
from tpo_mp.worker.letters import Letters
from tpo_mp.worker.links import Links
from tpo_mp.worker.mesh import Mesh
from tpo_mp.worker.owner import Owner
from tpo_mp.worker.peers import ShardPeers
from tpo_mp.worker.placing import Placing
from tpo_mp.worker.shared_feeds import SharedFeeds
from tpo_mp.worker.syncs import Syncs

SLOTS = 64
KEY = bytes(range(16))


class FakeHost:
    """The shared half: what the supervisor would have made."""

    def __init__(self, workers: int = 2, **options: Any) -> None:
        self.workers = workers
        self.seats = workers + 3
        self.control = self.seats - 1
        self.plane = Plane.create(workers, self.seats, KEY)
        self.rings = RingMesh.create(self.seats)
        self.arena = MetricsArena.create(self.seats)
        geometry = RegistryGeometry(self.seats, SLOTS, 1 << 20)
        self.registry = Registry(Segment.create("registry", geometry.size), geometry)
        self.ledger = FakeLedger()
        self.claims, self.rows = ClaimSegment.create(), RowTable.create(1)
        self.cache = CacheSegment.create(workers, 1 << 18)
        self.bells = [Doorbell.create() for _ in range(self.seats)]
        for seat in range(self.seats):
            self.plane.seat(seat).occupy(seat if seat < workers else -1, Command.RUN)
            self.plane.seat(seat).pid = 1000 + seat
            spare = workers <= seat < self.control
            self.plane.seat(seat).state = SeatState.PARKED if spare else SeatState.READY
        self.plane.publish_map([i % workers for i in range(BUCKETS)])
        self.shards = [FakeShard(self, seat, **options) for seat in range(workers)]
        self._control = [(s, self.rings.reader(s, self.control)) for s in range(workers)]

    def close(self) -> None:
        """Give everything back."""
        for shard in self.shards:
            shard.links.close()
        for bell in self.bells:
            bell.close()
        for part in (self.plane, self.rings, self.arena, self.registry, self.claims, self.rows,
                     self.cache):  # fmt: skip
            part.close()

    def pump(self, *only: FakeShard) -> None:
        """Let shards take what was sent to them, until nothing moves."""
        for _ in range(200):
            before = [shard.taken for shard in self.shards]
            for shard in only or self.shards:
                shard.turn()
            if before == [shard.taken for shard in self.shards]:
                return
        raise AssertionError("it never comes to rest")

    def tick(self) -> None:
        """One beat of every shard, and what comes of it."""
        for shard in self.shards:
            shard.mesh.tick()
            shard.feeds.tick(monotonic())
        self.pump()

    def die(self, seat: int, *, back: bool = True) -> None:
        """The supervisor reaps a shard; its successor serves at once, or not yet."""
        self.rings.reset_seat(seat)
        lines = self.plane.seat(seat)
        lines.occupy(seat, Command.RUN)
        lines.pid = 2000 + seat
        lines.state = SeatState.READY if back else SeatState.BOOTING

    def to_control(self) -> list[tuple[int, int, bytes]]:
        """Everything sent to control: source seat, kind, payload."""
        return [
            (source, record[0], record[HEAD.size :])
            for source, reader in self._control
            for record in reader.drain(10_000)
        ]

    def from_control(self, seat: int, record: bytes) -> None:
        """Control says something."""
        assert self.rings.writer(self.control, seat, 1).push(record)
        self.bells[seat].ring()

    def session_on(self, seat: int, tenant: str = "") -> str:
        """A session that a seat holds."""
        placing = self.shards[0].placing
        return next(s for s in map(str, range(9999)) if placing.seat_of(tenant, s) == seat)


class Scripted:
    """The upstream of one shard: calls wait until the test answers them."""

    name = "up"

    def __init__(self) -> None:
        self.calls: list[Call] = []
        self.promises: list[Promise[Reply]] = []
        self.cancelled = 0
        self.error: Exception | None = None

    def infer(self, call: Call) -> Awaitable[Reply]:
        """Take a call."""
        if self.error is not None:
            raise self.error
        call.upstream_at = monotonic()
        self.calls.append(call)
        promise: Promise[Reply] = Promise(self._cancel)
        self.promises.append(promise)
        return promise

    def _cancel(self) -> None:
        self.cancelled += 1

    def answer(self, reply: Reply | Exception, at: int = -1) -> None:
        """Answer a call; by default the newest."""
        self.calls[at].first_byte_at = monotonic()
        if isinstance(reply, Reply):
            self.promises[at].resolve(reply)
        else:
            self.promises[at].reject(reply)

    async def list_models(self) -> list[str]:
        """None of its own."""
        return []

    def close(self) -> None:
        """Nothing is held."""


class FakeShard:
    """One shard without its loop: links, mesh, owner, account, asynchronous calls."""

    def __init__(
        self, host: FakeHost, seat: int, *, loop: Any = None, credit_bytes: int = 65536,
        inline_bytes: int = 16384, config: dict[str, Any] | None = None, max_open: int = 1000,
    ) -> None:  # fmt: skip
        self.host = host
        self.seat = seat
        self.loop = FakeLoop()
        self.epoch = host.plane.seat(seat).epoch
        self.metrics = host.arena.block(seat, self.epoch)
        self.writer = host.registry.writer(seat, self.epoch)
        self.wheel = Wheel()
        self.placing = Placing(host.plane)
        self.crashes: list[BaseException] = []
        self.taken = 0
        self.busy = 0
        self.links = Links(
            seat=seat, epoch=self.epoch, plane=host.plane, mesh=host.rings,
            doorbells=[bell.fds for bell in host.bells], loop=self.loop,  # type: ignore[arg-type]
            metrics=self.metrics, take=self._take, rung=lambda: None,
        )  # fmt: skip
        control = host.control
        self.letters = Letters(
            lambda record: self.links.send(control, record), self.links.max_record, self.metrics
        )
        self.account = Account(
            loop=self.loop,  # type: ignore[arg-type]
            metrics=self.metrics, registry=self.writer,
            push=lambda record: self.links.send(control, record), letters=self.letters,
            max_record=self.links.max_record, on_crash=self.crashes.append,
        )  # fmt: skip
        self.owner = Owner(
            seat=seat, epoch=self.epoch, plane=host.plane, metrics_arena=host.arena,
            placing=self.placing, registry=self.writer, account=self.account,
            add_timer=self.wheel.add, max_open_calls=max_open,
        )  # fmt: skip
        self.peers = ShardPeers(self.links, self.placing, seat)
        self.mesh = Mesh(
            links=self.links, placing=self.placing, registry=host.registry, writer=self.writer,
            seat=seat, serving=self.owner.serving, credit_bytes=credit_bytes,
            inline_bytes=inline_bytes, on_busy=self._on_busy,
        )  # fmt: skip
        self.links.damaged = self._damaged
        self.store = StoreClient(
            lambda record: self.links.send(control, record), monotonic, frames.store_get,
            frames.store_put,
        )  # fmt: skip
        self.asyncs = Asyncs(
            owner=self.owner, links=self.links, plane=host.plane, store=self.store, seat=seat,
            epoch=self.epoch, ttl_s=60.0, metrics=self.metrics,
        )  # fmt: skip
        self.feeds = SharedFeeds(
            links=self.links, plane=host.plane, seat=seat, on_busy=self._on_busy,
            settings=StreamsSection(), timers=self.wheel, metrics=self.metrics,
        )  # fmt: skip
        self.owner.feeds = self.feeds
        self.owner.mesh, self.owner.asyncs, self.owner.store = self.mesh, self.asyncs, self.store
        self.cancels = self.owner.cancels = Cancels(
            owner=self.owner, asyncs=self.asyncs, links=self.links, plane=host.plane, seat=seat
        )
        self.backgrounds = Backgrounds(
            owner=self.owner, links=self.links, plane=host.plane, store=self.store, seat=seat,
            ttl_s=60.0, metrics=self.metrics,
        )  # fmt: skip
        self.owner.backgrounds = self.backgrounds
        self.job_calls = JobCalls(self.owner, self.store)
        self.owner.syncs = Syncs(
            lambda record: self.links.send(control, record), loop or self.loop, self.metrics
        )
        self.owner.slot = seat
        self.up = Scripted()
        tables = {
            "backends": [{"name": "up", "kind": "echo", "models": ["*"]}],
            # It fails as often as a test likes, and what a test says is said once.
            "stages": {"breaker": {"threshold": 1000}, "retry": {"attempts": 1}},
            **(config or {}),
        }
        env = Env(
            clock=monotonic, random=Random(0), metrics=self.metrics, log=None,  # type: ignore[arg-type]
            store=self.store, timers=self.wheel, rooms={stage: FakeRoom() for stage in STAGES},
            ledger=host.ledger, quotas=FakeQuotas(), live=FakeLive(),
            journal=FakeJournal(), shares=FakeShares(), peers=self.peers,
            cache=SharedCache(host.cache, host.rows, seat=seat, clock=monotonic),
        )  # fmt: skip
        self._env, self._tables = env, tables
        self.owner.poison = Poison(host.ledger, monotonic, self.metrics)
        self.mesh.on_death = self.owner.died_with
        self.peers.courier = Courier(
            mesh=self.mesh, plane=host.plane, seat=seat,
            claims=SharedClaims.of_host(host.claims, host.rows, host.plane, seat),
            check=self.owner.poison.check,
        )  # fmt: skip
        self.adopt(1, self.up)

    def adopt(self, epoch: int, up: Scripted) -> None:
        """Take another config epoch, with another upstream."""
        config = load.build(self._tables, {}, {}, None)
        self.owner.use(build(config, self._env, epoch, given={"up": up}))

    def _on_busy(self) -> None:
        self.busy += 1

    def _damaged(self, source: int) -> None:
        self.mesh.damaged(source)
        self.feeds.damaged(source)

    def _take(self, source: int, record: bytes) -> None:
        self.taken += 1
        kind, number = HEAD.unpack_from(record)
        payload = memoryview(record)[HEAD.size :]
        if (
            self.mesh.take(source, kind, number, payload)
            or self.asyncs.take(source, kind, payload)
            or self.cancels.take(source, kind, payload)
            or self.backgrounds.take(source, kind, payload)
            or self.job_calls.take(kind, payload)
            or self.feeds.take(source, kind, number, payload)
            or self.peers.take(source, kind, number, payload)
        ):
            return
        if kind == Kind.STORE_ANSWER:
            self.store.on_answer(msgspec.msgpack.decode(payload, type=frames.StoreAnswer))
        elif kind == Kind.SYNCED:
            self.owner.syncs.done(number)

    def turn(self) -> None:
        """One turn of the loop: callbacks, then the bell."""
        self.loop.run()
        self.loop.readers[self.host.bells[self.seat].fileno()]()
        self.loop.run()

    def exchange(self, **fields: Any) -> FakeExchange:
        """A client's request; ``fields`` are the head's."""
        head = Head()
        head.method, head.path = "POST", "/v1/chat/completions"
        head.endpoint = Endpoint("POST", head.path, lambda _exchange: None, "openai")
        for name, value in fields.items():
            setattr(head, name, value)
        return FakeExchange(head, b"{}")

    def ask(
        self, body: bytes = b"{}", *, session: str | None = None, stream: bool = False,
        **fields: Any,
    ) -> Delivery:  # fmt: skip
        """A client asks this shard."""
        exchange = self.exchange(session=session, **fields)
        call = self.owner.new_call(exchange, model="m", body=body, stream=stream, affinity=None)
        delivery = Delivery(self.owner, exchange, call)
        self.owner.submit(delivery)
        return delivery

    def fill_ring(self, seat: int) -> int:
        """Fill the ring to a seat with records nobody wants; answers how many."""
        n, size = 0, self.links.max_record
        while size:
            if self.links.send(seat, b"\xff" * size, control=True):
                n += 1
            else:
                size //= 2
        return n
