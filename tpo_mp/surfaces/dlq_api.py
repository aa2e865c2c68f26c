"""Dead letters over HTTP: list, show, ask again, drop.

A letter is asked again by one worker of the host at a time, and not again once that was answered:
``POST`` on a replayed letter says so and runs nothing.
A worker that dies while it asks leaves the letter open, and it may be tried again at once.
"""

from __future__ import annotations

import msgspec
import orjson
from msgspec import Struct

from tpo_mp.dialects import letter_shapes, shapes
from tpo_mp.errors import NotFound, Rejected, Shed
from tpo_mp.http import query as given
from tpo_mp.http.endpoints import Endpoint, Outcome
from tpo_mp.http.exchange import Exchange, id_line
from tpo_mp.pipeline.gateway import Gateway
from tpo_mp.pipeline.replay import Replayer
from tpo_mp.pipeline.replay_many import replay_many
from tpo_mp.ports import Env, Feature
from tpo_mp.shm.callid import CallIds
from tpo_mp.store.questions import ASK_S, LETTERS, LetterQuery

from .native_api import MAX_DLQ_PAGE, PAGE

_encode = msgspec.json.Encoder().encode


class Config(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """No options."""


class DlqApi:
    """Routes under ``/api/v1/dlq``."""

    def __init__(self, config: Config, env: Env) -> None:
        self._gateway: Gateway
        self._replayer: Replayer
        self._env = env

    def endpoints(self, gateway: Gateway) -> list[Endpoint]:
        """The routes of this surface."""
        self._gateway = gateway
        self._replayer = Replayer(gateway, self._env)
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
            *(Endpoint("POST", path + "/{id}", self.replay, "native", access="admin",
                       takes_json=False, errors=(409, 429, 502), alias_of=one + "/replay",
                       example_path=path + "/$LETTER_ID",
                       outcomes=(Outcome("it is answered, now or before", shapes.Replayed),))
              for path in ("/api/v1/dlq/replay", "/v1/dlq/replay")),
            Endpoint("POST", "/api/v1/dlq/replay", self.replay_many, "native", access="admin",
                     max_body_bytes=0,
                     request=letter_shapes.ReplayRequest, example={"limit": 1}, errors=(503,),
                     outcomes=(Outcome("what became of each", letter_shapes.ReplayedLetters),)),
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
        letter = await self._replayer.letter(call_id)
        if letter.status == "replayed":
            raise Rejected("the letter was replayed", reason="letter_replayed", status=409)
        await self._replayer.mark(call_id, b"dropped")
        state = orjson.dumps({"request_id": call_id, "status": "dropped"})
        exchange.respond(200, state, extra=id_line(exchange.head))

    async def replay(self, exchange: Exchange) -> None:
        """Ask a dead letter's request again, once."""
        letter = _id(exchange)
        answered = await self._replayer.ask_again(exchange, letter)
        call_id, answer = (None, b"null") if answered is None else answered
        ran = answered is not None
        told = {"request_id": letter, "status": "replayed", "ran": ran, "call_id": call_id}
        body = orjson.dumps(told)[:-1] + b',"answer":%b}' % answer
        exchange.respond(200, body, extra=id_line(exchange.head))

    async def replay_many(self, exchange: Exchange) -> None:
        """Ask dead letters again, all or a session's, the oldest first."""
        asked = letter_shapes.decode_replay(exchange.body)
        told = await replay_many(self._gateway, self._replayer, exchange, asked)
        exchange.respond(200, _encode(told), extra=id_line(exchange.head))

    # -- inside ---------------------------------------------------------------------------------

    async def _ask(self, key: str) -> bytes:
        answer = await self._gateway.ask_store(LETTERS, key, ASK_S)
        if answer is None:
            raise _silent()
        if answer[0] is None:
            raise NotFound("no such dead letter", reason="not_found")
        return answer[0]


def _id(exchange: Exchange) -> str:
    call_id = exchange.head.params["id"]
    if CallIds.parse(call_id) is None:
        raise NotFound("no such dead letter", reason="not_found")
    return call_id


def _silent() -> Shed:
    return Shed("the store does not answer", reason="store_unavailable", retry_after_s=1)


FEATURE = Feature(Config, DlqApi)
