"""Who may run under an idempotency key: one call of the host at a time, and none after its answer.

The keys lie in the store's keyed tables, under the caps of these, and outlive workers, control and
the host.  Everything here runs on the store's thread, one question after the other, so that of two
that ask for one key at once only one is told that it is its own.

A call whose worker died, or whose host did, is *lost*: whether a backend answered it nobody can
tell.  What a worker sent before it died may still lie in its ring when its death shows, so a call
is taken for lost only ``GRACE_S`` after that was first seen; until then it counts as running.

Invariants: a key that was granted, and its answer, are on disk before the worker is told; only the
call that has a key can end it.
Known weakness: a table over its caps forgets the oldest keys, those of running calls included.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Final

import msgspec

from tpo_mp.shm.callid import CallIds
from tpo_mp.store.key_questions import (
    KEYS,
    VERSION,
    ClaimKey,
    EndKey,
    KeyAnswer,
    KeyQuestion,
    KeyRecord,
    LookAtKey,
    decode_question,
    decode_record,
    encode,
)
from tpo_mp.store.shelf import Shelf

GRACE_S: Final = 0.5
FAILED_S: Final = 2.0
"""So long a failure that may be tried again is told to those who waited for it."""
_MAX_DYING: Final = 4096


class KeyDesk:
    """Answers questions about keys."""

    def __init__(
        self,
        run: int,
        lives: Callable[[int, int], bool],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """``run`` is this life of the host; ``lives(seat, epoch)`` says who of it is alive."""
        self._run = run
        self._lives = lives
        self._clock = clock
        self._dying: OrderedDict[str, float] = OrderedDict()

    def answer(self, shelf: Shelf, name: str, value: bytes) -> tuple[bool, bytes | None]:
        """Whether the question was answered, and what to say."""
        try:
            question = decode_question(value)
        except msgspec.MsgspecError:
            return False, None
        ok, raw = shelf.get(KEYS, name)
        if not ok:
            return False, None
        said = self._say(shelf, name, question, _record(raw))
        return (False, None) if said is None else (True, encode(said))

    def _say(
        self, shelf: Shelf, name: str, question: KeyQuestion, record: KeyRecord | None
    ) -> KeyAnswer | None:
        """The answer; ``None`` when the store cannot take what is to be kept."""
        if isinstance(question, LookAtKey):
            return self._told(record)
        if isinstance(question, EndKey):
            return self._end(shelf, name, question, record)
        return self._claim(shelf, name, question, record)

    def _claim(
        self, shelf: Shelf, name: str, question: ClaimKey, record: KeyRecord | None
    ) -> KeyAnswer | None:
        told = self._told(record)
        if told.state == "running" and told.call_id == question.call_id:
            return KeyAnswer("yours")  # it had asked before, and not heard the answer
        anew = told.state == "lost" and question.again and told.print == question.print
        if told.state in ("free", "failed") or anew:
            mine = KeyRecord(VERSION, self._run, "running", question.call_id, question.print)
            kept = shelf.put(KEYS, name, encode(mine), question.keep_s)
            return KeyAnswer("yours") if kept else None
        return told

    def _end(
        self, shelf: Shelf, name: str, question: EndKey, record: KeyRecord | None
    ) -> KeyAnswer | None:
        if record is not None and record.call_id != question.call_id:
            return self._told(record)
        ended = KeyRecord(
            VERSION, self._run, "done" if question.final else "failed", question.call_id,
            question.print, question.answer,
        )  # fmt: skip
        kept = shelf.put(KEYS, name, encode(ended), question.keep_s if question.final else FAILED_S)
        return self._told(ended) if kept else None

    def _told(self, record: KeyRecord | None) -> KeyAnswer:
        if record is None:
            return KeyAnswer("free")
        state = record.state
        if state == "running" and self._is_lost(record):
            state = "lost"
        return KeyAnswer(state, record.call_id, record.print, record.answer)

    def _is_lost(self, record: KeyRecord) -> bool:
        place = CallIds.parse(record.call_id)
        if place is None or record.run != self._run:
            return True
        if self._lives(place.seat, place.epoch):
            return False
        now = self._clock()
        first_seen = self._dying.setdefault(record.call_id, now)
        if len(self._dying) > _MAX_DYING:
            self._dying.popitem(last=False)
        return now - first_seen >= GRACE_S


def _record(raw: bytes | None) -> KeyRecord | None:
    """What is kept; a later version's word is nobody's here."""
    if raw is None:
        return None
    try:
        record = decode_record(raw)
    except msgspec.MsgspecError:
        return None
    return record if record.version == VERSION else None
