"""A dead letter asked again: the same body in the same dialect, the answer kept for the asker.

The replay is a call of its own, of the letter's tenant and session.  It is asked for whole, for the
client that wanted a stream is gone, and leaves no second letter when it fails.
"""

from __future__ import annotations

import asyncio
import base64
from typing import Any, Final, Literal

import msgspec
import orjson
from msgspec import Struct

from tpo_mp.dialects.body import with_fields
from tpo_mp.errors import BackendFailure, Rejected
from tpo_mp.http.exchange import JSON, Exchange
from tpo_mp.types import Call, Dialect

from .absent import AbsentClient
from .delivery import Delivery
from .gateway import Gateway

DIALECTS: Final = {
    "/v1/chat/completions": Dialect.OPENAI_CHAT,
    "/v1/completions": Dialect.OPENAI_COMPLETIONS,
    "/v1/embeddings": Dialect.OPENAI_EMBEDDINGS,
    "/v1/responses": Dialect.OPENAI_RESPONSES,
    "/v1/messages": Dialect.ANTHROPIC_MESSAGES,
    "/v1/messages/count_tokens": Dialect.ANTHROPIC_COUNT,
    "/v1/complete": Dialect.ANTHROPIC_COMPLETE,
}
"""Dialect of a letter by the route that took it; native routes keep theirs as chats.

Google's routes, which only a simulator has, have a colon and are not asked again.
"""


class LetterCopy(Struct):
    """What is needed of a letter, as the store tells it."""

    request_id: str
    status: str
    model: str
    tenant: str
    path: str
    truncated: bool
    payload: Any
    session_id: str | None = None
    encoding: Literal["text", "base64", ""] = ""

    def body(self) -> bytes:
        """The request's bytes; raises ``Rejected`` when they cannot be asked again."""
        if self.truncated:
            said = "the letter holds a part of the request only"
            raise Rejected(said, reason="letter_truncated", status=409)
        if self.encoding == "base64":
            return base64.b64decode(self.payload)
        if self.encoding == "text":
            return str(self.payload).encode()
        return orjson.dumps(self.payload)


class AskedAgain(AbsentClient):
    """Keeps one answer instead of sending it."""

    __slots__ = ("answer", "status")

    def __init__(self, path: str, body: bytes, peer: str) -> None:
        super().__init__("POST", path, body, peer)
        self.status = 0
        self.answer: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()

    def respond(
        self,
        status: int,
        body: bytes,
        content_type: bytes = JSON,  # noqa: ARG002 - an answer has it
        extra: bytes = b"",  # noqa: ARG002 - the same
    ) -> None:
        """Keep it."""
        self._keep(status, body)

    def begin(self, *_: object) -> None:
        """Nothing streams here: the body asked for a whole reply."""
        self._keep(502, b"")

    def abort(self, *, hard: bool = False) -> None:  # noqa: ARG002 - there is no connection
        """The call ended without an answer."""
        self._keep(502, b"")

    def _keep(self, status: int, body: bytes) -> None:
        if not self.answer.done():
            self.status = status
            self.answer.set_result(body)


class ReplayDelivery(Delivery):
    """Delivery of a replay; its letter is there already."""

    __slots__ = ()
    lettered = False


def replay_call(gateway: Gateway, exchange: Exchange, letter: LetterCopy) -> ReplayDelivery:
    """Start the call of a letter; raises what refuses it at once."""
    if ":" in letter.path:
        said = f"a request of {letter.path} cannot be asked again here"
        raise Rejected(said, reason="letter_not_replayable", status=409)
    dialect = DIALECTS.get(letter.path, Dialect.OPENAI_CHAT)
    body = letter.body()
    if _streams(body):
        body = with_fields(body, stream=False, stream_options=None)
    client = AskedAgain(letter.path, body, exchange.peer)
    call = gateway.new_call(
        exchange, model=letter.model, body=body, stream=False, affinity=letter.session_id
    )
    call.dialect, call.tenant, call.session = dialect, letter.tenant, letter.session_id
    call.tier = ""  # its tenant's, not the operator's
    call.authorization = None  # the operator's key is not the caller's
    delivery = ReplayDelivery(gateway, client, call)
    delivery.template = letter.path
    gateway.submit(delivery)
    return delivery


async def answer_of(delivery: ReplayDelivery) -> tuple[Call, bytes]:
    """The answer; raises ``BackendFailure`` with what was said instead."""
    client = delivery.exchange
    assert isinstance(client, AskedAgain)
    try:
        body = await client.answer
    except asyncio.CancelledError:
        delivery.cancel()
        raise
    if not 200 <= client.status < 300:
        said = f"the replay was answered {client.status}"
        reason = delivery.error.reason if delivery.error is not None else "replay_failed"
        raise BackendFailure(said, reason=reason)
    return delivery.call, body


class _Head(Struct):
    stream: Any = None


def _streams(body: bytes) -> bool:
    try:
        return bool(msgspec.json.decode(body, type=_Head).stream)
    except msgspec.MsgspecError:
        return False
