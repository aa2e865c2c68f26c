"""Sorts what workers send: records to the log, questions to the store, answers back.

Invariants: a record that cannot be decoded is counted and dropped, never fatal; every question that
can be decoded is answered once, in as many pieces as its ring needs; a letter of whose pieces one
is missing is kept without its request, and says so.
"""

from __future__ import annotations

from collections.abc import Callable
from struct import Struct as Layout
from struct import error as StructError  # noqa: N812 - it is a class

import msgspec

from tpo_mp.shm.frames import (
    HEAD,
    DeadLetterFrame,
    Kind,
    StoreAnswer,
    StoreGet,
    StorePut,
    frame,
)
from tpo_mp.shm.plane import Plane
from tpo_mp.store.audit_questions import AUDIT, AUDIT_STATS
from tpo_mp.store.job_questions import JOBS
from tpo_mp.store.key_questions import KEYS
from tpo_mp.store.letters import Letter
from tpo_mp.store.questions import REPLAYS
from tpo_mp.store.shelf import Shelf

from . import answers
from .audit import AuditReader
from .copies import Copies
from .idempotency import KeyDesk
from .jobs import JobRunner
from .keeper import Keeper
from .mail import Mail
from .pieces import Lost, Pieces
from .replays import Replays
from .sealed_records import sealed

FLUSH_BYTES = 1 << 20
_ANSWER_BYTES = 64

_get = msgspec.msgpack.Decoder(StoreGet).decode
_put = msgspec.msgpack.Decoder(StorePut).decode
_letter = msgspec.msgpack.Decoder(DeadLetterFrame).decode


class Desk:
    """Handles one record at a time, on the loop; the work itself is the keeper's."""

    def __init__(
        self, plane: Plane, keeper: Keeper, on_records: Callable[[int, bytes], None]
    ) -> None:
        """``on_records`` sees each batch of call records with the seat it came from."""
        self._plane = plane
        self._keeper = keeper
        self._on_records = on_records
        self._pieces = Pieces()
        self._audit = AuditReader()
        self._batches: list[bytes] = []
        self._batch_bytes = 0
        self.mail: Mail | None = None
        """Where answers go; set once both exist."""
        self.copies: Copies | None = None
        """Who syncs open calls; set as well."""
        self.jobs: JobRunner | None = None
        """Who runs batch jobs; set as well."""
        self.replays: Replays | None = None
        """Who asks dead letters again; set as well."""
        self.keys: KeyDesk | None = None
        """Who grants idempotency keys; set as well."""
        self.batches = 0
        self.malformed = 0
        self.letters = 0

    @property
    def given_up(self) -> int:
        """Values given up because too many were incomplete."""
        return self._pieces.given_up

    def handle(self, seat: int, record: bytes) -> None:
        """Take one record off a ring."""
        try:
            kind, number = HEAD.unpack_from(record)
            if kind == Kind.RECORDS:
                self._records(seat, record[HEAD.size :])
            elif kind == Kind.STORE_GET:
                self._get(seat, _get(record[HEAD.size :]))
            elif kind == Kind.STORE_PUT:
                self._put(seat, _put(record[HEAD.size :]))
            elif kind == Kind.DEAD_LETTER:
                self._dead_letter(seat, _letter(record[HEAD.size :]))
            elif kind == Kind.SYNC and self.copies is not None:
                slots = Layout(f"<{(len(record) - HEAD.size) // 4}I").unpack_from(record, HEAD.size)
                self.copies.ask(seat, number, slots)
            else:
                self.malformed += 1
        except (msgspec.MsgspecError, StructError):
            self.malformed += 1

    def flush(self) -> None:
        """Hand the batches of records since the last flush to the keeper."""
        if not self._batches:
            return
        batches, self._batches, self._batch_bytes = self._batches, [], 0

        def work(shelf: Shelf) -> None:
            for batch in batches:
                shelf.record(sealed(batch, shelf.seals))

        self._keeper.submit(work, cost=sum(map(len, batches)))

    def _records(self, seat: int, batch: bytes) -> None:
        if batch:
            self.batches += 1
            self._batches.append(batch)
            self._batch_bytes += len(batch)
            self._on_records(seat, batch)
            if self._batch_bytes > FLUSH_BYTES:
                self.flush()

    def _get(self, seat: int, question: StoreGet) -> None:
        table, key, token = question.table, question.key, question.token
        epoch = self._plane.seat(seat).epoch

        def done(answer: tuple[bool, bytes | None] | None) -> None:
            ok, value = answer or answers.UNAVAILABLE
            self._answer(seat, epoch, token, ok, value)

        if table in (AUDIT, AUDIT_STATS):
            self.flush()  # what came before the question is seen by it
            self._keeper.submit(lambda shelf: answers.audit(self._audit, shelf, table, key), done)
        else:
            self._keeper.submit(lambda shelf: answers.get(shelf, table, key), done)

    def _put(self, seat: int, question: StorePut) -> None:
        epoch, token = self._plane.seat(seat).epoch, question.token
        name = (seat, epoch, token)
        try:
            value = self._pieces.add(name, question.value, more=question.more, at=question.at)
        except Lost:
            self._answer(seat, epoch, token, False, None)
            return
        if value is None:
            return
        if question.table == JOBS and self.jobs is not None:
            self.jobs.ask(value, lambda ok, said: self._answer(seat, epoch, token, ok, said))
            return
        table, key, ttl_s = question.table, question.key, question.ttl_s
        if table == REPLAYS and self.replays is not None:
            self.replays.told(
                seat, epoch, key, value,
                lambda said: self._answer(seat, epoch, token, said is not None, said),
            )  # fmt: skip
            return
        keys = self.keys
        if table == KEYS and keys is not None:

            def told(answer: tuple[bool, bytes | None] | None) -> None:
                self._answer(seat, epoch, token, *(answer or answers.UNAVAILABLE))

            self._keeper.submit(
                lambda shelf: keys.answer(shelf, key, value), told, cost=len(value), writes=True
            )
            return

        def done(ok: bool | None) -> None:
            self._answer(seat, epoch, token, bool(ok), None)

        self._keeper.submit(
            lambda shelf: answers.put(shelf, table, key, value, ttl_s),
            done,
            cost=len(value),
            writes=True,
        )

    def _dead_letter(self, seat: int, sent: DeadLetterFrame) -> None:
        name = (seat, sent.call_id)
        truncated = sent.truncated
        try:
            body = self._pieces.add(name, sent.body, more=sent.more, at=sent.at)
        except Lost:  # who, when and why are in every piece
            body, truncated = b"", True
        if body is None:
            return
        letter = Letter(
            sent.call_id, sent.client_request_id, sent.session, sent.reason, sent.dropped_at,
            sent.model, sent.tenant, sent.path, body, truncated,
            sent.bytes_sent,
        )  # fmt: skip
        self.letters += 1
        self._keeper.submit(lambda shelf: shelf.add_letters([letter]), cost=len(body))

    def _answer(self, seat: int, epoch: int, token: int, ok: bool, value: bytes | None) -> None:
        mail = self.mail
        if mail is None or self._plane.seat(seat).epoch != epoch:
            return
        step = mail.max_record - _ANSWER_BYTES
        if value is None or len(value) <= step:
            records = [frame(Kind.STORE_ANSWER, 0, StoreAnswer(token, ok, value))]
        else:
            records = [
                frame(Kind.STORE_ANSWER, 0,
                      StoreAnswer(token, ok, value[at : at + step], at + step < len(value)))
                for at in range(0, len(value), step)
            ]  # fmt: skip
        mail.send(seat, records)
