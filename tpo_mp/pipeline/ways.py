"""How the requests of a route become calls: their surface says it once, here it is done for each.

Invariants: what a call has beside its body follows from the head of its request alone, so that
the same body under a head that is alike in ``Way.place`` is the same call again.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import TYPE_CHECKING

from tpo_mp.dialects.body import strip_routing_fields
from tpo_mp.dialects.codec import RequestHead
from tpo_mp.types import Call, Dialect

from .delivery import Delivery
from .gateway import Gateway
from .recall import ANSWERED, Recalled

if TYPE_CHECKING:
    from tpo_mp.http.exchange import Exchange
    from tpo_mp.http.head import Head


class Way:
    """One route's, whose requests are all in one dialect and answered by one kind of delivery.

    ``headers`` are those that ``dress`` reads: they go upstream as they are.
    """

    __slots__ = ("_decode", "_delivery", "_dialect", "_headers")

    def __init__(
        self,
        dialect: Dialect,
        decode: Callable[[bytes], RequestHead],
        delivery: type[Delivery] = Delivery,
        headers: tuple[bytes, ...] = (),
    ) -> None:
        self._dialect = dialect
        self._decode = decode
        self._delivery = delivery
        self._headers = headers

    def run(self, gateway: Gateway, exchange: Exchange) -> None:
        """Answer a request: from its bytes alone, or by a call; raises ``InvalidRequest``."""
        known = gateway.recall(exchange, self)
        if known is None:
            body = exchange.body
            request = self._decode(body)
            if request.has_routing_fields():
                body = strip_routing_fields(body)
        elif known is ANSWERED:
            return
        else:
            request, body = known.request, known.body
        self.submit(gateway, exchange, self.call(gateway, exchange, request, body, known))

    def call(
        self, gateway: Gateway, exchange: Exchange, request: RequestHead, body: bytes,
        known: Recalled | None = None,
    ) -> Call:  # fmt: skip
        """The call that a request becomes, which is ``known`` or was read."""
        # By their places: by their names they cost thrice as much to hand over.
        call = gateway.new_call(
            exchange, request.model, body, bool(request.stream), request.affinity
        )
        call.dialect = self._dialect
        call.usage_wanted = request.usage_wanted
        if known is not None:
            call.fingerprint = known.question.fingerprint
        if self._headers:
            self.dress(call, exchange.head)
        return call

    def submit(self, gateway: Gateway, exchange: Exchange, call: Call) -> None:
        """Run a call of this route."""
        gateway.submit(self._delivery(gateway, exchange, call))

    def dress(self, call: Call, head: Head) -> None:
        """Give a call what its request's head says beyond what all routes read."""
        for name in self._headers:
            if name in head.headers:
                call.forward += b"%b: %b\r\n" % (name, head.headers[name])

    def place(self, head: Head) -> Hashable:
        """All of a head that ``dress`` reads."""
        return tuple(map(head.headers.get, self._headers))
