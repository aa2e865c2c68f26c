"""Ends open calls by their id, whichever shard of this host has them.

An id names the shard that accepted the call, so that one is asked first; a call that was run again
after its worker died, or a prompt of a batch, lives elsewhere under its old id, so the others are
asked next.  What ends here is told its client, and its last record is kept for whoever asks.

Invariants: at most ``MAX_QUESTIONS`` are open; a shard that dies meanwhile counts as "not here".
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from time import monotonic
from typing import Any

import msgspec

from tpo_mp.dialects import native
from tpo_mp.errors import Cancelled, Shed
from tpo_mp.pipeline.delivery import ON_REQUEST
from tpo_mp.shm import frames
from tpo_mp.shm.callid import CallIds
from tpo_mp.shm.frames import HEAD, Kind
from tpo_mp.shm.plane import Plane, SeatState

from .asyncs import Asyncs
from .links import Links
from .owner import Owner

MAX_QUESTIONS = 1024
ANSWER_S = 1.0
_POLL_S = 0.05
_SERVING = (SeatState.READY, SeatState.DRAINING)
_encode = msgspec.msgpack.Encoder().encode
_decode_cancel = msgspec.msgpack.Decoder(frames.CancelCall).decode
_decode_answer = msgspec.msgpack.Decoder(frames.CancelAnswer).decode


class _Question:
    """One call, and the shards that have not said yet whether it is theirs."""

    __slots__ = ("answer", "lives")

    def __init__(self, answer: asyncio.Future[bool], lives: dict[int, tuple[int, int]]) -> None:
        self.answer = answer
        self.lives = lives

    def said(self, seat: int, ended: bool) -> None:
        self.lives.pop(seat, None)
        if not self.answer.done() and (ended or not self.lives):
            self.answer.set_result(ended)


class Cancels:
    """Cancelling by id, as one shard does it."""

    def __init__(
        self, *, owner: Owner, asyncs: Asyncs, links: Links, plane: Plane, seat: int
    ) -> None:
        self._owner = owner
        self._asyncs = asyncs
        self._links = links
        self._plane = plane
        self._seat = seat
        self._token = 0
        self._questions: dict[int, _Question] = {}

    async def cancel(self, call_id: str) -> bool:
        """Whether the call was open somewhere and is ended now; raises ``Shed``."""
        if self.end(call_id):
            return True
        place = CallIds.parse(call_id)
        others = [n for n in range(self._plane.seats - 1) if n != self._seat and self._serves(n)]
        if place is not None and place.seat in others:
            if await self._ask([place.seat], call_id):
                return True
            others.remove(place.seat)
        return await self._ask(others, call_id)

    def end(self, call_id: str) -> bool:
        """End a call of this shard; False when it is not open here."""
        for delivery in self._owner.open:
            if delivery.call.id == call_id:
                break
        else:
            return False
        delivery.cancel()
        self._asyncs.keep(call_id, _record(delivery))
        return True

    def take(self, source: int, kind: int, payload: memoryview) -> bool:
        """Handle one frame if it is ours; answers whether it was."""
        if kind == Kind.CANCEL_CALL:
            asked = _decode_cancel(payload)
            ended = self.end(asked.call_id)
            if asked.token:
                answer = _encode(frames.CancelAnswer(asked.token, ended))
                self._links.push(source, HEAD.pack(Kind.CANCEL_ANSWER, 0), answer, control=True)
        elif kind == Kind.CANCEL_ANSWER:
            said = _decode_answer(payload)
            question = self._questions.get(said.token)
            if question is not None:
                question.said(source, said.ended)
        else:
            return False
        return True

    def _serves(self, seat: int) -> bool:
        return self._plane.seat(seat).state in _SERVING

    async def _ask(self, seats: Iterable[int], call_id: str) -> bool:
        lives = {seat: self._links.life_of(seat) for seat in seats}
        if not lives:
            return False
        if len(self._questions) >= MAX_QUESTIONS:
            raise _silent()
        self._token = token = self._token + 1 & 0xFFFFFFFF or 1
        question = _Question(asyncio.get_running_loop().create_future(), lives)
        self._questions[token] = question
        asked = _encode(frames.CancelCall(token, call_id))
        try:
            for seat in list(lives):
                if not self._links.push(seat, HEAD.pack(Kind.CANCEL_CALL, 0), asked, control=True):
                    raise _silent()
            return await self._answer(question)
        finally:
            del self._questions[token]

    async def _answer(self, question: _Question) -> bool:
        until = monotonic() + ANSWER_S
        while not question.answer.done():
            await asyncio.wait([question.answer], timeout=_POLL_S)
            for seat, life in list(question.lives.items()):
                if self._links.life_of(seat) != life:
                    question.said(seat, False)
            if monotonic() >= until and not question.answer.done():
                raise _silent()
        return question.answer.result()


def _record(delivery: Any) -> dict[str, Any]:
    call = delivery.call
    error = Cancelled("the call was cancelled on request", reason=ON_REQUEST)
    shown = native.error_object(error, call.id)
    return native.record(call.id, call.session, "cancelled", error=shown, model=call.model)


def _silent() -> Shed:
    return Shed("a shard does not answer", reason="shard_silent", retry_after_s=1)
