"""A dead letter asked again: the same body in the same dialect, the answer kept for the asker.

The replay is a call of its own, of the letter's tenant and session.  It is asked for whole, for the
client that wanted a stream is gone, and leaves no second letter when it fails.
"""

from __future__ import annotations

import asyncio
import base64
from time import monotonic
from typing import Any, Final, Literal

import msgspec
import orjson
from msgspec import Struct

from tpo_mp.dialects.body import with_fields
from tpo_mp.errors import BackendFailure, Busy, NotFound, Rejected, Shed, TpoError
from tpo_mp.http.exchange import JSON, Exchange
from tpo_mp.ports import Cells, Env
from tpo_mp.store.questions import ASK_S, LETTERS, ReplayWord
from tpo_mp.types import Call, Dialect, Priority

from .absent import AbsentClient
from .attribution import may_have_worked
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


REDACTED: Final = "letter_redacted"
"""Reason of an error that says that there is nothing left to ask."""
LOCKED: Final = "letter_locked"
"""Reason of an error that says that there is no key to what is to be asked."""
LEASE_S: Final = 600.0
"""How long a replay that has not ended keeps others from beginning one."""
SILENT: Final = "store_unavailable"
"""Reason of an error that says that control did not answer."""
UNDER_WAY: Final = "replay_under_way"
"""Reason of an error that says that the letter is being asked."""
BEGIN_S: Final = 2.0
"""How long control may take to write a word down."""
TOLD_S: Final = 1.0
"""How long who asked waits for the end of the attempt to be written down."""
_RETRY_S: Final = 0.1
_TRIES: Final = 20


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
    redacted: bool = False
    locked: bool = False

    def body(self) -> bytes:
        """The request's bytes; raises ``Rejected`` when they cannot be asked again."""
        if self.redacted:
            said = "the text of the request was not kept ([store] dead_letter_bodies)"
            raise Rejected(said, reason=REDACTED, status=409)
        if self.locked:
            said = "the request is sealed with none of our keys ([store] encryption_keys)"
            raise Rejected(said, reason=LOCKED, status=409)
        if self.truncated:
            said = "the letter holds a part of the request only"
            raise Rejected(said, reason="letter_truncated", status=409)
        if self.encoding == "base64":
            return base64.b64decode(self.payload)
        if self.encoding == "text":
            return str(self.payload).encode()
        return orjson.dumps(self.payload)


_letter = msgspec.json.Decoder(LetterCopy).decode


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


def replay_call(
    gateway: Gateway, exchange: Exchange, letter: LetterCopy, priority: Priority | None = None
) -> ReplayDelivery:
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
    call.forward += b"idempotency-key: %b\r\n" % letter.request_id.encode()
    if priority is not None:
        call.priority = priority
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


class Replayer:
    """Asks a letter again on one worker of the host at a time, and not once it was answered.

    Each attempt is written down by control before it is made, and its end afterwards.  A worker
    that dies while it asks lets go of the letter with its life; one that hangs keeps it for
    ``LEASE_S``.
    """

    def __init__(self, gateway: Gateway, env: Env) -> None:
        self._gateway = gateway
        self._store, self._ledger, self._peers = env.store, env.ledger, env.peers
        self._telling: set[asyncio.Task[None]] = set()
        text = "Dead letters that were asked again and answered."
        self._replayed = env.metrics.counter("orchestrator_dlq_replayed_total", text)

    async def letter(self, call_id: str) -> LetterCopy:
        """A letter as the store has it; raises ``NotFound`` or ``Shed``."""
        answer = await self._gateway.ask_store(LETTERS, call_id, ASK_S)
        if answer is None:
            raise _silent()
        if answer[0] is None:
            raise NotFound("no such dead letter", reason="not_found")
        return _letter(answer[0])

    async def ask_again(
        self,
        exchange: Exchange,
        call_id: str,
        *,
        attempt: int = 0,
        priority: Priority | None = None,
    ) -> tuple[str, bytes] | None:
        """Ask it; answers the new call's id and its answer, or ``None`` when it was answered.

        ``attempt`` is the number of one that control has written down already; it is waited for
        until control has heard of its end, others no longer than ``TOLD_S``.
        Raises ``Rejected`` for what cannot be asked, ``Busy`` while somebody asks, ``Shed`` with
        the reason ``SILENT`` where nothing was asked for want of control, and what the call fails
        with.
        """
        letter = await self.letter(call_id)
        if letter.status == "dropped":
            raise Rejected("the letter was dropped", reason="letter_dropped", status=409)
        if letter.status == "replayed":
            return None
        number = attempt
        if attempt and not await self._begin(call_id, attempt):
            return None  # control took it back meanwhile
        name = f"dlq:{call_id}"
        if not self._lease(name, monotonic()):
            said = "the letter is being replayed"
            raise Busy(said, reason=UNDER_WAY, status=409, retry_after_s=1)
        if not attempt:
            try:
                number = await self._begin(call_id, 0)
            except BaseException:
                self._release(name)
                raise
            if not number:  # it was answered, or dropped, since we looked at it
                self._release(name)
                return await self.ask_again(exchange, call_id, priority=priority)
        word = ReplayWord("failed", number, unclear=True)  # unless we learn more
        asked: ReplayDelivery | None = None
        try:
            asked = replay_call(self._gateway, exchange, letter, priority)
            call, answer = await answer_of(asked)
            word = ReplayWord("answered", number, unclear=call.unclear)
        except TpoError as error:
            word = _failure(number, asked, error)
            await self._told(name, call_id, word, forever=attempt > 0)
            raise
        except BaseException:
            self._tell_later(name, call_id, word)
            raise
        self._replayed.inc()
        await self._told(name, call_id, word, forever=attempt > 0)
        return call.id, answer

    async def mark(self, call_id: str, status: bytes) -> None:
        """Set a letter's status; raises ``Shed`` when the store does not take it."""
        for _ in range(_TRIES):  # control may be starting again
            if await self._store.put(LETTERS, call_id, status, 0):
                return
        raise _silent()

    # -- attempts ---------------------------------------------------------------------------------

    async def _begin(self, call_id: str, attempt: int) -> int:
        """Have an attempt written down, or see that one still is; answers its number, else 0."""
        said = await self._gateway.tell_replay(call_id, ReplayWord("begun", attempt), BEGIN_S)
        if said is None:
            if not attempt:  # it may be written down all the same
                self._tell_later("", call_id, ReplayWord("withdrawn"))
            raise _silent()
        return int(said or b"0")

    async def _told(self, name: str, call_id: str, word: ReplayWord, *, forever: bool) -> None:
        telling = self._tell_later(name, call_id, word)
        await asyncio.wait({telling}, timeout=None if forever else TOLD_S)

    def _tell_later(self, name: str, call_id: str, word: ReplayWord) -> asyncio.Task[None]:
        """Tell control; nobody else may ask the letter before it has heard."""
        task = asyncio.get_running_loop().create_task(self._tell(name, call_id, word))
        self._telling.add(task)
        task.add_done_callback(self._telling.discard)
        return task

    async def _tell(self, name: str, call_id: str, word: ReplayWord) -> None:
        try:
            said = None
            while said is None:
                said = await self._gateway.tell_replay(call_id, word, BEGIN_S)
                if said is None:  # control may be starting again
                    await asyncio.sleep(_RETRY_S)
        finally:
            if name:
                self._release(name)

    # -- the lease --------------------------------------------------------------------------------

    def _release(self, name: str) -> None:
        self._ledger.update(name, lambda cells: (0.0, *cells[1:]), crowd=True)

    def _lease(self, name: str, now: float) -> bool:
        """Whether this worker may ask now; the cells are until when who does: seat and life."""
        taken = False
        here = self._peers.here
        epoch, pid = self._peers.life_of(here)
        mine = (now + LEASE_S, float(here), float(epoch), float(pid))

        def take(cells: Cells) -> Cells:
            nonlocal taken
            until, seat, *life = cells
            lives = [*map(float, self._peers.life_of(int(seat)))] == life
            taken = now >= until or not lives
            return mine if taken else cells

        self._ledger.update(name, take, crowd=True)
        return taken


def _failure(number: int, asked: ReplayDelivery | None, error: TpoError) -> ReplayWord:
    """What to tell of an attempt that ended with ``error``."""
    if asked is None:
        if error.reason == LOCKED:
            return ReplayWord("locked", number)
        return ReplayWord(
            "failed" if error.retryable or isinstance(error, Busy) else "refused", number
        )
    unclear = asked.call.unclear or may_have_worked(asked.error)
    return ReplayWord("failed", number, unclear)


def _silent() -> Shed:
    return Shed("the store does not answer", reason=SILENT, retry_after_s=1)


class _Head(Struct):
    stream: Any = None


def _streams(body: bytes) -> bool:
    try:
        return bool(msgspec.json.decode(body, type=_Head).stream)
    except msgspec.MsgspecError:
        return False
