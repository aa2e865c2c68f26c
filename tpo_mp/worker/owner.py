"""Call ownership: a call's way from a client of this shard through the chain and back.

The shard that accepted a call owns it: it admits it, registers it, keeps the client, and accounts
for its end, wherever the chain runs.

A call goes by one configuration from its admission to its end, on whichever shard: the chain of
the epoch before the present one stays at hand for calls that are still under way with it.

Invariants: every submitted delivery is registered and ends in ``settled`` once; refusals before
submission (draining, too many open calls) are answered, never queued.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from hashlib import blake2b
from time import monotonic
from typing import TYPE_CHECKING, Any

import msgspec

from tpo_mp.config.tree import Config
from tpo_mp.dialects import tags
from tpo_mp.errors import Draining, InvalidRequest, Shed, TpoError, WorkerLost
from tpo_mp.http.endpoints import Endpoint, EndpointTable
from tpo_mp.observe.health import ArenaView
from tpo_mp.pipeline.chain import Chain
from tpo_mp.pipeline.feeds import Feeds
from tpo_mp.pipeline.fingerprint import reuse_of
from tpo_mp.pipeline.poison import Poison, digest_of_body
from tpo_mp.pipeline.promise import Promise, run
from tpo_mp.shm import failpoints
from tpo_mp.shm.callid import CallIds, marked, to_bytes
from tpo_mp.shm.frames import SlotMeta
from tpo_mp.shm.plane import NO_SEAT, Plane, SeatState
from tpo_mp.shm.registry import RegistryWriter, SlotFlag, SlotState
from tpo_mp.simulator import orders
from tpo_mp.store import job_questions
from tpo_mp.store.client import DEADLINE_S as STORE_S
from tpo_mp.store.client import StoreClient
from tpo_mp.store.questions import REPLAYS, ReplayWord
from tpo_mp.types import EVERYBODY, NO_DEADLINE, Call, Priority, Reply

from .account import Account
from .build import Pipeline
from .letters import wants_letter
from .mesh import Mesh
from .placing import Placing
from .recalls import Recalls
from .remote import Bounced
from .syncs import Syncs

if TYPE_CHECKING:
    from tpo_mp.http.exchange import Exchange
    from tpo_mp.http.head import Head
    from tpo_mp.pipeline.delivery import Delivery
    from tpo_mp.pipeline.native_delivery import NativeDelivery
    from tpo_mp.pipeline.recall import Recalled
    from tpo_mp.pipeline.response_log import EventPage
    from tpo_mp.pipeline.ways import Way

    from .asyncs import Asyncs
    from .backgrounds import Backgrounds
    from .cancels import Cancels

# Plain numbers: a member is looked up in its enum for a tenth of a microsecond.
_STREAM, _JOB = int(SlotFlag.STREAM), int(SlotFlag.JOB)
_OWING, _SETTLED = int(SlotState.OWING), int(SlotState.SETTLED)
MAX_PLACINGS = 3
_SERVING = (SeatState.READY, SeatState.DRAINING)
MAX_AFFINITY = 512
MAX_DEADLINE_MS = 604_800_000
_PATIENCE = (b"x-stainless-read-timeout", b"x-stainless-timeout")
"""Seconds after which an SDK hangs up: those in Python wait for a byte, those in JavaScript for
an answer to begin."""
_KEY = re.compile(rb"[ -~]{1,255}")
_PRIORITIES = {
    b"critical": Priority.CRITICAL,
    b"high": Priority.HIGH,
    b"normal": Priority.NORMAL,
    b"low": Priority.LOW,
}


class Owner:
    """The ``Gateway`` of one shard."""

    def __init__(
        self,
        *,
        seat: int,
        epoch: int,
        plane: Plane,
        metrics_arena: ArenaView,
        placing: Placing,
        registry: RegistryWriter,
        account: Account,
        add_timer: Callable[[Any, float], None],
        max_open_calls: int,
    ) -> None:
        self._ids = CallIds(seat, epoch)
        self._seat = seat
        self.plane = plane
        self.metrics_arena: ArenaView = metrics_arena
        self._placing = placing
        self._registry = registry
        self._account = account
        self._add_timer = add_timer
        self._recalls = Recalls(self, account, self._ids, placing)
        self._max_open = max_open_calls
        self._encode_meta = msgspec.msgpack.Encoder().encode
        self._metas: dict[tuple[str, str, str, str, bool, tuple[str, ...] | None], bytes] = {}
        self.open: set[Delivery] = set()
        self.others_open = 0
        self.draining = False
        self.slot = -1
        self.mesh: Mesh
        self.poison: Poison
        self.asyncs: Asyncs
        self.backgrounds: Backgrounds
        self.syncs: Syncs
        self.cancels: Cancels
        self.feeds: Feeds
        self.pipeline: Pipeline
        self._previous: Pipeline | None = None
        self._tiers: dict[str, str] = {}
        """Tiers of tenants, for calls that come without their key."""
        self._carrying: tuple[Any, ...] = ()
        """Backends that ask for request headers of their own."""
        self.catch_up: Callable[[], None] = lambda: None
        """Adopts the published config now, or refuses it."""
        self._run: Callable[[Call], Awaitable[Reply]]
        self.store: StoreClient
        self.table: EndpointTable

    def use(self, pipeline: Pipeline) -> None:
        """Serve new calls with another chain; open ones keep theirs."""
        self._previous = getattr(self, "pipeline", None)
        self.pipeline = pipeline
        always = pipeline.config.store.durability == "always"
        backends = pipeline.backends.values()
        keys = reversed(pipeline.config.auth.keys)  # the first of a tenant's keys counts
        self._tiers = {key.tenant or key.id: key.tier for key in keys}
        self._carrying = tuple(one for one in backends if hasattr(one, "carried"))
        self._recalls.use(pipeline, self._carrying)
        self._account.models.use(pipeline.models.configured)
        self._account.prices = pipeline.prices
        serve, plane = pipeline.chain.serve, self.plane

        def placed(call: Call) -> Awaitable[Reply]:
            if call.affinity is None or plane.workers == 1:
                call.admitted = True
                return serve(call)
            return self._placed(pipeline, call)

        self._run = pipeline.chain.admit(self.syncs.first(placed) if always else placed)

    @property
    def config(self) -> Config:
        return self.pipeline.config

    # -- Gateway ------------------------------------------------------------------------------

    def tenant(self, head: Head) -> str:
        return head.principal.tenant

    def mark(self, head: Head) -> str:
        return self._placing.mark(head.principal.tenant)

    def owns(self, head: Head, call_id: str) -> bool:
        return call_id.endswith(self._placing.mark(head.principal.tenant))

    def recall(self, exchange: Exchange, way: Way) -> Recalled | None:
        return self._recalls.recall(exchange, way)

    def new_call(
        self, exchange: Exchange, model: str, body: bytes, stream: bool, affinity: str | None
    ) -> Call:
        """Identify a request."""
        if self.draining:
            raise Draining("this gateway is shutting down", reason="draining", retry_after_s=1)
        if len(self.open) + self.others_open >= self._max_open:
            raise Shed(
                "too many open calls on this host", reason="too_many_open_calls", retry_after_s=1
            )
        head = exchange.head
        if affinity is not None and len(affinity) > MAX_AFFINITY:
            # Any string may be a key, but it travels in one ring record.
            affinity = blake2b(affinity.encode("utf-8", "surrogatepass")).hexdigest()
        principal = head.principal
        call_id = self._ids.new()
        if principal.tenant:
            call_id = marked(call_id, self._placing.mark(principal.tenant))
        call = Call(call_id, model, body, stream, monotonic())
        call.client_request_id = head.request_id
        call.session = head.session
        call.affinity = head.session or affinity or None
        call.shard = self.slot
        headers = head.headers
        call.tenant, call.key_id = principal.tenant, principal.key_id
        call.tier = principal.tier
        if head.keyed != b"authorization":  # a key of ours never goes upstream
            call.authorization = headers.get(b"authorization")
        call.peer = exchange.peer
        if head.sdk:
            _hear_sdk(call, headers)
        if head.special:
            self._steer(call, head)
        for backend in self._carrying:
            if backend.carried:
                call.forward += orders.carried_lines(headers, backend.carried)
        return call

    def _steer(self, call: Call, head: Head) -> None:
        """Apply the headers that few requests have."""
        headers = head.headers
        call.forward = head.trace
        if call.authorization is None and b"x-api-key" in headers and head.keyed != b"x-api-key":
            call.authorization = b"Bearer " + headers[b"x-api-key"]
        if any(name in headers for name in orders.STEER):
            call.forward += orders.lines_of(headers)
        if b"x-litellm-session-id" in headers and call.session is None:
            # A native body names a session of ours; other bodies only hint at one.
            native = head.endpoint is not None and head.endpoint.family == "native"
            if not (native and call.affinity):
                call.affinity = headers[b"x-litellm-session-id"].decode("ascii")
        if b"x-tpo-priority" in headers:
            priority = _PRIORITIES.get(headers[b"x-tpo-priority"].lower())
            if priority is None:
                raise InvalidRequest(
                    "x-tpo-priority must be critical, high, normal or low", param="x-tpo-priority"
                )
            call.priority = priority
        if b"x-tpo-cache" in headers or b"cache-control" in headers:
            call.reuse = reuse_of(headers)
        if tags.HEADER in headers:
            tags.tags_of(headers[tags.HEADER])  # a slip of the pen is told now
        if b"idempotency-key" in headers:
            call.idempotency_key = _idempotency_key(headers[b"idempotency-key"])
        if b"x-tpo-deadline-ms" in headers:
            call.deadline = call.started_at + _deadline_s(headers[b"x-tpo-deadline-ms"])

    def submit(self, delivery: Delivery, flags: int = 0, attempts: int = 0) -> None:
        """Register the call and run it."""
        call = delivery.call
        if not call.tier:
            call.tier = self._tiers.get(call.tenant, EVERYBODY.tier)
        call.rerun = attempts > 0
        if call.stream:
            flags |= _STREAM
        if not delivery.lettered:
            flags |= _JOB
        number, meta = to_bytes(call.id), self._meta(delivery)
        slot = self._registry.open(number, meta, call.body, flags, attempts)
        if slot < 0 and self._account.release():
            slot = self._registry.open(number, meta, call.body, flags, attempts)
        if slot < 0:
            raise Shed(
                "too many open calls on this shard", reason="too_many_open_calls", retry_after_s=1
            )
        call.slot = slot
        self.open.add(delivery)
        if failpoints.ACTIVE:
            failpoints.hit("inflight.accepted")
        if delivery.deadline != float("inf"):
            self._add_timer(delivery, call.started_at)
        try:
            if self.poison.armed():
                self.poison.check(call)
            if failpoints.ACTIVE:
                failpoints.hit(f"inflight.body.{digest_of_body(call.body):013x}")
            awaitable = self._run(call)
        except TpoError as e:
            delivery.done(None, e)
            return
        except Exception as e:  # noqa: BLE001 - a defect in a feature fails its call, not the shard
            delivery.done(None, e)
            return
        if isinstance(awaitable, Promise):
            delivery.promise = awaitable
            awaitable.then(delivery.done)
        else:
            outcome: Promise[Reply] = Promise()
            delivery.promise = outcome
            outcome.then(delivery.done)
            outcome.cancel_with = run(awaitable, _into(outcome))

    def settled(self, delivery: Delivery) -> None:
        """Account for a call that ended.

        Should this process die before the letter of a failed one has left it, control makes the
        letter from what it finds in the slot.
        """
        self.open.discard(delivery)
        slot = delivery.call.slot
        if slot >= 0:
            owes = delivery.error is not None and wants_letter(delivery)
            self._registry.set_state(slot, _OWING if owes else _SETTLED)
        self._account.add(delivery)
        if delivery.call.cache == "hit":
            self._recalls.learn(delivery)

    def serving(self, epoch: int, key: bytes = b"") -> Callable[[Call], Awaitable[Reply]]:
        """The inner chain of a config epoch, for a call that was admitted under it elsewhere.

        One that was brought for its key enters it at the stage that shares calls of a key.
        """
        chain = self._chain_of(epoch)
        return partial(chain.join, key) if key and chain.join is not None else chain.serve

    def _chain_of(self, epoch: int) -> Chain:
        if epoch > self.pipeline.epoch:
            # The other shard was told first; what it found published, we find too.
            self.catch_up()
        previous = self._previous
        if previous is not None and previous.epoch == epoch:
            return previous.chain
        return self.pipeline.chain

    async def models(self) -> Sequence[str]:
        return await self.pipeline.models.names()

    def adapter(self, model: str) -> tuple[str, str] | None:
        return self.pipeline.models.adapter(model)

    def knows_model(self, model: str) -> bool:
        return self.pipeline.router.knows(model)

    def sampling(self, model: str) -> Mapping[str, object]:
        return self.pipeline.router.sampling(model)

    def default_model(self) -> str | None:
        return self.pipeline.models.first()

    async def ask_store(
        self, table: str, key: str, wait_s: float = STORE_S
    ) -> tuple[bytes | None] | None:
        return await self.store.lookup(table, key, wait_s=wait_s)

    def endpoints(self) -> Sequence[Endpoint]:
        return self.table.all

    async def result(self, call_id: str, wait_s: float) -> bytes | None:
        return await self.asyncs.result(call_id, wait_s)

    async def ask_jobs(self, question: job_questions.Question) -> job_questions.JobAnswer | None:
        value, wait_s = job_questions.encode(question), job_questions.ASK_S
        said = await self.store.post(job_questions.JOBS, "", value, wait_s=wait_s)
        return None if said is None else job_questions.decode_answer(said[0] or b"")

    async def tell_replay(self, call_id: str, word: ReplayWord, wait_s: float) -> bytes | None:
        said = await self.store.post(REPLAYS, call_id, word.value(), wait_s=wait_s)
        return None if said is None else said[0] or b""

    async def cancel(self, call_id: str) -> bool:
        return await self.cancels.cancel(call_id)

    def accept(self, delivery: NativeDelivery, session_id: str) -> dict[str, Any]:
        return self.asyncs.accept(delivery, session_id)

    async def run_background(self, call: Call, asked: bytes) -> dict[str, Any]:
        return await self.backgrounds.start(call, asked)

    async def background_events(self, call_id: str, after: int, wait_s: float) -> EventPage | None:
        return await self.backgrounds.events(call_id, after, wait_s)

    # -- placing ------------------------------------------------------------------------------

    def _placed(self, pipeline: Pipeline, call: Call) -> Awaitable[Reply]:
        """Run the inner chain on the shard that holds the call's session."""
        call.admitted = True
        assert call.affinity is not None
        seat = self._placing.seat_of(call.tenant, call.affinity)
        if seat == self._seat or not self._reachable(seat):
            return pipeline.chain.serve(call)
        return self._away(pipeline, call, seat)

    def _reachable(self, seat: int) -> bool:
        """Whether a living shard sits there; between a death and its replacement none does."""
        return seat != NO_SEAT and self.plane.seat(seat).state in _SERVING

    async def _away(self, pipeline: Pipeline, call: Call, seat: int) -> Reply:
        """Forward; when the other shard dies before a byte was sent, place the call again."""
        assert call.affinity is not None
        for _ in range(MAX_PLACINGS):
            if seat == self._seat or not self._reachable(seat):
                break
            remote = self.mesh.forward(call, seat, pipeline.epoch)
            if remote is None:
                break
            call.shard = self.plane.seat(seat).slot
            try:
                return await remote.promise
            except Bounced:
                pass
            except WorkerLost:
                call.unclear = True
                self.poison.check(call)  # it may be this call that they die of
            seat = self._placing.seat_of(call.tenant, call.affinity)
        call.shard = self.slot
        return await pipeline.chain.serve(call)

    def died_with(self, call: Call, began_at: float) -> None:
        """A shard died that this call had been forwarded to."""
        self.poison.mark(digest_of_body(call.body), began_at, monotonic())

    def stop_all(self, error: TpoError) -> None:
        """End every open call with ``error``."""
        for delivery in list(self.open):
            delivery.stop(error)

    def _meta(self, delivery: Delivery) -> bytes:
        call = delivery.call
        session = call.session or ""
        key = (delivery.template, call.model, call.tenant, session, call.stream, call.unsaid)
        if not call.client_request_id:
            known = self._metas.get(key)
            if known is not None:
                return known
        meta = self._encode_meta(
            SlotMeta(key[0], key[1], key[2], session, call.client_request_id, call.stream, key[5])
        )
        if not call.client_request_id:
            if len(self._metas) >= 1024:
                self._metas.clear()
            self._metas[key] = meta
        return meta


def _into(outcome: Promise[Reply]) -> Callable[[Any, BaseException | None], None]:
    def done(reply: Reply | None, error: BaseException | None) -> None:
        if reply is None:
            outcome.reject(error or asyncio.CancelledError())
        elif outcome.done and reply.stream is not None:
            reply.stream.cancel()
        else:
            outcome.resolve(reply)

    return done


def _hear_sdk(call: Call, headers: Mapping[bytes, bytes]) -> None:
    """What SDKs say of themselves: how long they wait, and how often they asked."""
    for name in _PATIENCE:
        patience = headers.get(name)
        if patience is not None:
            call.patience_s = min(call.patience_s, _patience_s(patience))
    again = headers.get(b"x-stainless-retry-count")
    if again is not None and again.isdigit():
        call.sdk_try = int(again[:3])


def _patience_s(raw: bytes) -> float:
    """How long an SDK waits for the next byte; what is no number of seconds says nothing."""
    try:
        seconds = float(raw)
    except ValueError:
        return NO_DEADLINE
    return seconds if seconds > 0 else NO_DEADLINE


def _idempotency_key(raw: bytes) -> bytes:
    if _KEY.fullmatch(raw) is None:
        raise InvalidRequest(
            "idempotency-key must be 1 to 255 printable ASCII characters", param="idempotency-key"
        )
    return raw


def _deadline_s(raw: bytes) -> float:
    if not raw.isdigit() or not 1 <= int(raw[:12]) <= MAX_DEADLINE_MS:
        raise InvalidRequest(
            f"x-tpo-deadline-ms must be a whole number from 1 to {MAX_DEADLINE_MS}",
            param="x-tpo-deadline-ms",
        )
    return int(raw) / 1e3
