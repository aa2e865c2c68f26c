"""Calls by their id: what they answered lately, and how to end one.

Any call of this host can be ended by the id in ``x-tpo-call-id``, whichever API it came by.
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta, Struct

from tpo_mp.dialects import shapes
from tpo_mp.errors import NotFound, Rejected, Shed
from tpo_mp.http import query as given
from tpo_mp.http.endpoints import Endpoint, Outcome, Parameter
from tpo_mp.http.exchange import Exchange, id_line
from tpo_mp.pipeline.gateway import Gateway
from tpo_mp.ports import Env, Feature
from tpo_mp.shm.callid import CallIds
from tpo_mp.store.questions import ASK_S, RESULTS, RecordQuery

MAX_PAGE = 200
STATES = {
    "completed": "completed", "error": "failed", "pending": "processing", "cancelled": "cancelled"
}  # fmt: skip
"""What ``?filter=`` may say, and the status it means."""


PAGE = (
    Parameter("session_id", "Only calls of this session."),
    Parameter("filter", "Only calls that stand so.",
              Literal["completed", "error", "pending", "cancelled"]),
    Parameter("limit", "Most records to list; 20 unless given.",
              Annotated[int, Meta(ge=1, le=MAX_PAGE)]),
    Parameter("after", "The `next` of the page before.", Annotated[int, Meta(ge=0, le=1 << 62)]),
)  # fmt: skip


class Config(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """No options."""


class _Status(Struct):
    status: str


class ResultsApi:
    """``/api/v1/results`` and ``/api/v1/requests/{id}``."""

    def __init__(self, config: Config, env: Env) -> None:
        self._gateway: Gateway

    def endpoints(self, gateway: Gateway) -> list[Endpoint]:
        """The routes of this surface."""
        self._gateway = gateway
        return [
            Endpoint("GET", "/api/v1/results", self.results, "native", parameters=PAGE,
                     outcomes=(Outcome("one page", shapes.RecordPage),)),
            *Endpoint(
                "DELETE", "/api/v1/requests/{id}", self.cancel, "native", errors=(409,),
                example_path="/api/v1/requests/$OPEN_ID",
                outcomes=(Outcome("the record of the call, cancelled now or before",
                                  shapes.PromptRecord),),
            ).at("/v1/requests/{id}"),
        ]  # fmt: skip

    async def results(self, exchange: Exchange) -> None:
        """List records of asynchronous calls, the latest word first."""
        query = given.parameters(exchange.head)
        limit = given.whole(query, "limit", 20, least=1, most=MAX_PAGE)
        after = given.whole(query, "after", 0, least=0, most=1 << 62) if "after" in query else None
        word = given.choice(query, "filter", STATES)
        state = None if word is None else STATES[word]
        mark = self._gateway.mark(exchange.head)
        wanted = RecordQuery(limit, after, query.get("session_id"), state, mark)
        answer = await self._gateway.ask_store(RESULTS, wanted.key(), ASK_S)
        if answer is None or answer[0] is None:
            raise Shed("the store does not answer", reason="store_unavailable", retry_after_s=1)
        exchange.respond(200, answer[0], extra=id_line(exchange.head))

    async def cancel(self, exchange: Exchange) -> None:
        """End a running or waiting call; its last record says so."""
        call_id = exchange.head.params["id"]
        if CallIds.parse(call_id) is None or not self._gateway.owns(exchange.head, call_id):
            raise _unknown()
        await self._gateway.cancel(call_id)
        record = await self._gateway.result(call_id, 0.0)
        if record is None:
            raise _unknown()
        status = msgspec.json.decode(record, type=_Status).status
        if status in ("processing", "pending"):
            raise Shed(
                "the call is between two workers; ask again", reason="in_transit", retry_after_s=1
            )
        if status != "cancelled":
            said = f"the call has already {status}"
            raise Rejected(said, reason="request_finished", status=409)
        exchange.respond(200, record, extra=id_line(exchange.head))


def _unknown() -> NotFound:
    return NotFound("no open call has this id", reason="request_not_found")


FEATURE = Feature(Config, ResultsApi)
