"""Requests whose very bytes came before: their body is not read again, and a hit is told at once.

A body that the cache answered twice is remembered with what reading it found, in the ``Scope`` of
whoever sent it: the route with what else it reads of a head (``pipeline.ways``), the tenant, and
the credential that would go upstream.  The same bytes
of the same scope need no decoding, no normalising and no hashing.  Where the pipeline has no stage
in front of the cache that must see each call, such a request is answered without becoming a call,
if the cache would answer it now; it is counted and recorded as one.

Whatever steers a single call by a header (``head.STEERING``) goes the whole way.

Invariants: what is told is what the whole way would tell at that moment; no slot of the registry
tells of such a request, so its answer is written once its record was pushed, a turn of the loop
later; a new configuration forgets all; at most ``MOST`` bodies and ``MOST_BYTES``, the oldest go
first.
Known weakness: while control takes no records they wait here, but answers do not.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Hashable
from time import monotonic
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeAlias, cast

from tpo_mp.dialects.codec import RequestHead
from tpo_mp.errors import TpoError
from tpo_mp.http.head import STEERING
from tpo_mp.pipeline.codecs import codec
from tpo_mp.pipeline.delivery import SSE_LINES
from tpo_mp.pipeline.fingerprint import Match, fingerprint
from tpo_mp.pipeline.recall import ANSWERED, Recalled
from tpo_mp.shm import failpoints
from tpo_mp.shm.callid import CallIds, marked
from tpo_mp.simulator.orders import carried_lines
from tpo_mp.types import Call

from .account import Account, Repeat
from .placing import Placing

if TYPE_CHECKING:
    from tpo_mp.http.exchange import Exchange
    from tpo_mp.http.head import Head
    from tpo_mp.pipeline.chain import AnswerTeller
    from tpo_mp.pipeline.delivery import Delivery
    from tpo_mp.pipeline.kept import ToldAnswer
    from tpo_mp.pipeline.ways import Way

    from .build import Pipeline
    from .owner import Owner

MOST: Final = 4096
MOST_BYTES: Final = 4 << 20
MOST_BODY_BYTES: Final = 16 << 10
MOST_SCOPES: Final = 1024
MOST_SEEN: Final = 8192
_ENTRY_BYTES: Final = 1536
_LINES: Final = (
    b"x-request-id: %b\r\nx-tpo-call-id: %b\r\nx-tpo-shard: %d\r\n"
    b"server-timing: gateway;dur=%.2f, upstream;dur=0.00\r\nx-tpo-cache: hit\r\n"
)
_Place: TypeAlias = tuple[str, str, bytes | None, Hashable]


class _Reads(Protocol):
    decode_request: Callable[[bytes], RequestHead]


class Scope:
    """Bodies of one route, tenant and upstream credential; of one ``life``."""

    __slots__ = ("authorization", "known", "life", "tenant", "way")

    def __init__(
        self, life: object, tenant: str, authorization: bytes | None, way: Way | None
    ) -> None:
        self.life = life
        self.tenant = tenant
        self.authorization = authorization
        self.way = way
        """How calls are made of them; ``None``: nothing is remembered here."""
        self.known: dict[bytes, Recalled] = {}


class Recalls:
    """Those of one shard, under one configuration."""

    def __init__(self, owner: Owner, account: Account, ids: CallIds, placing: Placing) -> None:
        self._owner = owner
        self._account = account
        self._ids = ids
        self._placing = placing
        self._untold: list[tuple[Exchange, bool, bytes, bytes, bytes]] = []
        account.on_entered = self._tell
        self.use(None)

    def use(self, pipeline: Pipeline | None, carrying: tuple[Any, ...] = ()) -> None:
        """Begin anew with a configuration; ``None``: one in which nothing is remembered.

        A request with a header that some backend of ``carrying`` asks for goes the whole way.
        """
        self._carrying = carrying
        self._life = object()
        self._teller: AnswerTeller | None = None if pipeline is None else pipeline.chain.teller
        self._nowhere = Scope(self._life, "", None, None)
        self._off = pipeline is None
        self._forget()

    def _forget(self) -> None:
        self._scopes: dict[_Place, Scope] = {}
        self._order: deque[tuple[Scope, bytes]] = deque()
        self._bytes = 0
        self._seen: set[int] = set()

    def __len__(self) -> int:
        return len(self._order)

    def recall(self, exchange: Exchange, way: Way) -> Recalled | None:
        """What is known of a request; ``ANSWERED`` when it was answered."""
        head = exchange.head
        scope: Scope | None = head.scope
        if scope is None or scope.life is not self._life:
            scope = head.scope = self._scope_of(head, way)
        if not scope.known:
            return None
        known = scope.known.get(exchange.body)
        if known is None or (self._carrying and self._carries(head)):
            return None
        teller = self._teller
        if teller is None or known.key is None or self._owner.draining:
            return known
        if failpoints.ACTIVE and not failpoints.hit("repeats.whole_way"):
            return known
        told = teller.recall(known.key, known.question)
        if told is None:
            return known
        self._answer(exchange, known, told)
        return ANSWERED

    def _answer(self, exchange: Exchange, known: Recalled, told: ToldAnswer) -> None:
        """Have it entered into the books, and the answer ready for when it is."""
        began_at = monotonic()
        head, bytes_in, peer, shard = (
            exchange.head,
            len(exchange.body),
            exchange.peer,
            self._owner.slot,
        )
        call_id = self._ids.new()
        tenant = head.principal.tenant
        if tenant:
            call_id = marked(call_id, self._placing.mark(tenant))
        body = told.body(call_id)
        name = call_id.encode()
        now = monotonic()
        asked = head.request_id.encode() if head.request_id else name
        lines = _LINES % (asked, name, shard, (now - began_at) * 1e3)
        delivery = known.delivery
        if delivery.id_line:
            lines = delivery.id_line % asked + lines
        content_type, stream = told.content_type, told.stream
        if stream:
            content_type, body = delivery.told(content_type, body)
        self._untold.append((exchange, stream, body, content_type, lines))
        self._account.add_repeat(
            Repeat(known, told, call_id, head, began_at, now, shard, peer, bytes_in, len(body))
        )

    def _tell(self) -> None:
        """Answer those that are in the books."""
        untold, self._untold = self._untold, []
        for exchange, stream, body, content_type, lines in untold:
            if not exchange.open:
                continue
            try:
                if stream:
                    exchange.begin(200, content_type, lines + SSE_LINES, None)
                    exchange.write(body)
                    exchange.finish()
                else:
                    exchange.respond(200, body, content_type, lines)
            except Exception as e:  # noqa: BLE001 - the others wait for theirs
                exchange.abort()
                self._account.on_crash(e)

    # -- what is remembered ---------------------------------------------------------------------

    def learn(self, delivery: Delivery) -> None:
        """Remember the body of a call that was a hit, the second time."""
        scope: Scope | None = delivery.exchange.head.scope
        if scope is None or scope.way is None or scope.life is not self._life:
            return
        body = delivery.asked
        size = len(body)
        if size > MOST_BODY_BYTES:
            return
        mark = hash(body) ^ id(scope)
        if mark not in self._seen:
            if len(self._seen) >= MOST_SEEN:
                self._seen.clear()
            self._seen.add(mark)
            return
        if body in scope.known:
            return
        known = self._read(scope, scope.way, delivery)
        if known is None:
            return
        scope.known[body] = known
        self._order.append((scope, body))
        self._bytes += _ENTRY_BYTES + 3 * size
        while self._bytes > MOST_BYTES or len(self._order) > MOST:
            scope, body = self._order.popleft()
            del scope.known[body]
            self._bytes -= _ENTRY_BYTES + 3 * len(body)

    def _read(self, scope: Scope, way: Way, delivery: Delivery) -> Recalled | None:
        """What the bytes of a body say by themselves, whatever became of the call."""
        call = delivery.call
        reads = cast("_Reads", codec(call.dialect))  # those whose surfaces recall have it
        try:
            request = reads.decode_request(call.body)
        except TpoError:
            return None
        if request.has_routing_fields():
            return None
        probe = Call(
            id="", model=request.model, body=call.body, stream=bool(request.stream), started_at=0.0
        )
        probe.dialect, probe.usage_wanted = call.dialect, request.usage_wanted
        probe.tenant, probe.authorization = scope.tenant, scope.authorization
        way.dress(probe, delivery.exchange.head)
        if fingerprint(probe, Match.ALL) is None:
            return None
        key = None if self._teller is None else self._teller.key_of(probe)
        return Recalled(request, probe, key, type(delivery))

    def _carries(self, head: Head) -> bool:
        """Whether a call with this head tells a backend what is its own."""
        return any(carried_lines(head.headers, backend.carried) for backend in self._carrying)

    def _scope_of(self, head: Head, way: Way) -> Scope:
        headers = head.headers
        if self._off or head.endpoint is None:
            return self._nowhere
        if head.special and not STEERING.isdisjoint(headers):
            return self._nowhere
        # As ``Owner.new_call`` has it: a key of ours never goes upstream.
        ours = head.keyed == b"authorization"
        authorization = None if ours else headers.get(b"authorization")
        if authorization is None and head.keyed != b"x-api-key" and b"x-api-key" in headers:
            authorization = b"Bearer " + headers[b"x-api-key"]
        place = (head.endpoint.template, head.principal.tenant, authorization, way.place(head))
        scope = self._scopes.get(place)
        if scope is None:
            if len(self._scopes) >= MOST_SCOPES:
                self._life = object()
                self._nowhere = Scope(self._life, "", None, None)
                self._forget()
            scope = self._scopes[place] = Scope(self._life, place[1], authorization, way)
        return scope
