"""Dead letters over HTTP: list, show, ask again, drop.

A letter is asked again by one worker of the host at a time, and not again once that was answered:
``POST`` on a replayed letter says so and runs nothing.
A worker that dies while it asks leaves the letter open, and it may be tried again after the lease.
"""

from __future__ import annotations

from time import monotonic
from typing import Final

import msgspec
import orjson
from msgspec import Struct

from tpo_mp.dialects import shapes
from tpo_mp.errors import Busy, NotFound, Rejected, Shed
from tpo_mp.http import query as given
from tpo_mp.http.endpoints import Endpoint, Outcome
from tpo_mp.http.exchange import Exchange, id_line
from tpo_mp.pipeline.gateway import Gateway
from tpo_mp.pipeline.replay import LetterCopy, answer_of, replay_call
from tpo_mp.ports import Cells, Env, Feature
from tpo_mp.shm.callid import CallIds
from tpo_mp.store.questions import LETTERS, LetterQuery

from .native_api import MAX_DLQ_PAGE, PAGE

LEASE_S: Final = 600.0
"""How long a replay that has not ended keeps others from beginning one."""
_TRIES: Final = 20
_letter = msgspec.json.Decoder(LetterCopy).decode


class Config(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """No options."""


class DlqApi:
    """Routes under ``/api/v1/dlq``."""

    def __init__(self, config: Config, env: Env) -> None:
        self._gateway: Gateway
        self._store = env.store
        self._ledger = env.ledger
        text = "Dead letters that were asked again and answered."
        self._replayed = env.metrics.counter("orchestrator_dlq_replayed_total", text)

    def endpoints(self, gateway: Gateway) -> list[Endpoint]:
        """The routes of this surface."""
        self._gateway = gateway
        one, example = "/api/v1/dlq/{id}", "/api/v1/dlq/$LETTER_ID"
        return [
            *Endpoint(
                "GET", "/api/v1/dlq", self.dead_letters, "native", access="admin", parameters=PAGE,
                outcomes=(Outcome("one page", shapes.LetterPage),),
            ).at("/v1/dlq"),
            Endpoint("GET", one, self.dead_letter, "native", access="admin", example_path=example,
                     outcomes=(Outcome("the letter", shapes.DeadLetterRecord),)),
            Endpoint("DELETE", one, self.drop, "native", access="admin", errors=(409,),
                     example_path="/api/v1/dlq/$LETTER_ID",
                     outcomes=(Outcome("it is dropped", shapes.LetterState),)),
            Endpoint("POST", one + "/replay", self.replay, "native", access="admin",
                     takes_json=False, errors=(409, 429, 502),
                     example_path="/api/v1/dlq/$LETTER_ID/replay",
                     outcomes=(Outcome("it is answered, now or before", shapes.Replayed),)),
            Endpoint("POST", "/v1/dlq/replay/{id}", self.replay, "native", access="admin",
                     takes_json=False, errors=(409, 429, 502), alias_of=one + "/replay",
                     example_path="/v1/dlq/replay/$LETTER_ID",
                     outcomes=(Outcome("it is answered, now or before", shapes.Replayed),)),
        ]  # fmt: skip

    async def dead_letters(self, exchange: Exchange) -> None:
        """List dead letters, newest first; reading does not remove them."""
        query = given.parameters(exchange.head)
        limit = given.whole(query, "limit", MAX_DLQ_PAGE, least=1, most=10_000)
        after = given.whole(query, "after", 0, least=0, most=1 << 62) if "after" in query else None
        found = await self._ask(LetterQuery(limit=limit, after=after).key())
        exchange.respond(200, found, extra=id_line(exchange.head))

    async def dead_letter(self, exchange: Exchange) -> None:
        """Show one dead letter with its payload."""
        exchange.respond(200, await self._ask(_id(exchange)), extra=id_line(exchange.head))

    async def drop(self, exchange: Exchange) -> None:
        """Take a dead letter off the list; its payload goes with its segment."""
        call_id = _id(exchange)
        letter = _letter(await self._ask(call_id))
        if letter.status == "replayed":
            raise Rejected("the letter was replayed", reason="letter_replayed", status=409)
        await self._mark(call_id, b"dropped")
        state = orjson.dumps({"request_id": call_id, "status": "dropped"})
        exchange.respond(200, state, extra=id_line(exchange.head))

    async def replay(self, exchange: Exchange) -> None:
        """Ask a dead letter's request again, once."""
        call_id = _id(exchange)
        letter = _letter(await self._ask(call_id))
        if letter.status == "dropped":
            raise Rejected("the letter was dropped", reason="letter_dropped", status=409)
        if letter.status == "replayed":
            self._respond(exchange, call_id, False, None, b"null")
            return
        name = f"dlq:{call_id}"
        if not self._lease(name, monotonic()):
            said = "the letter is being replayed"
            raise Busy(said, reason="replay_under_way", status=409, retry_after_s=1)
        try:
            call, answer = await answer_of(replay_call(self._gateway, exchange, letter))
            await self._mark(call_id, b"replayed")
        finally:
            self._ledger.update(name, _released, crowd=True)
        self._replayed.inc()
        self._respond(exchange, call_id, True, call.id, answer)

    # -- inside ---------------------------------------------------------------------------------

    def _lease(self, name: str, now: float) -> bool:
        """Whether this worker may replay now; ``cells[0]`` is until when somebody does."""
        taken = False

        def take(cells: Cells) -> Cells:
            nonlocal taken
            taken = now >= cells[0]
            return (now + LEASE_S, *cells[1:]) if taken else cells

        self._ledger.update(name, take, crowd=True)
        return taken

    def _respond(
        self, exchange: Exchange, letter: str, ran: bool, call_id: str | None, answer: bytes
    ) -> None:
        told = {"request_id": letter, "status": "replayed", "ran": ran, "call_id": call_id}
        body = orjson.dumps(told)[:-1] + b',"answer":%b}' % answer
        exchange.respond(200, body, extra=id_line(exchange.head))

    async def _ask(self, key: str) -> bytes:
        answer = await self._gateway.ask_store(LETTERS, key)
        if answer is None:
            raise _silent()
        if answer[0] is None:
            raise NotFound("no such dead letter", reason="not_found")
        return answer[0]

    async def _mark(self, call_id: str, status: bytes) -> None:
        for _ in range(_TRIES):  # control may be starting again
            if await self._store.put(LETTERS, call_id, status, 0):
                return
        raise _silent()


def _id(exchange: Exchange) -> str:
    call_id = exchange.head.params["id"]
    if CallIds.parse(call_id) is None:
        raise NotFound("no such dead letter", reason="not_found")
    return call_id


def _released(cells: Cells) -> Cells:
    return (0.0, *cells[1:])


def _silent() -> Shed:
    return Shed("the store does not answer", reason="store_unavailable", retry_after_s=1)


FEATURE = Feature(Config, DlqApi)
