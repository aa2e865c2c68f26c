"""Prompts of batch jobs that control gave this shard: run like any call, then told back.

A prompt comes under its own id and may come twice, when control was replaced; the second time it
is known.  What became of it is told again and again until control has written it down, so that
neither's death loses it while the other lives.

Invariants: a prompt runs once here at a time; it leaves no dead letter, because its job keeps the
prompt and shows what happened; what only could not be done now (draining, no room, a limit) goes
back to wait.
"""

from __future__ import annotations

import asyncio
from time import monotonic
from typing import Any

import msgspec
import orjson

from tpo_mp.dialects import native
from tpo_mp.errors import Busy, Draining, TpoError
from tpo_mp.pipeline.absent import AbsentClient
from tpo_mp.pipeline.native_calls import told
from tpo_mp.pipeline.native_delivery import NativeDelivery
from tpo_mp.shm import frames
from tpo_mp.shm.frames import Kind
from tpo_mp.shm.registry import SlotFlag
from tpo_mp.store import job_questions as ask
from tpo_mp.store.client import StoreClient
from tpo_mp.types import Call, Priority

from .owner import Owner

RETRY_S = 0.1
MAX_PIECES = 64
_decode_call = msgspec.msgpack.Decoder(frames.RerunFrame).decode
_decode_meta = msgspec.msgpack.Decoder(frames.SlotMeta).decode


class JobDelivery(NativeDelivery):
    """Keeps the record of a prompt, and whether it should be tried later instead."""

    __slots__ = ("later",)
    lettered = False

    def __init__(self, owner: Owner, call: Call, path: str) -> None:
        self.later = False
        super().__init__(owner, AbsentClient("POST", path), call, call.session, detached=True)
        self.template = path

    def send_error(self, error: TpoError) -> None:
        """Keep the failed record."""
        self.later = isinstance(error, Busy)
        super().send_error(error)


class JobCalls:
    """The batch prompts of one shard."""

    def __init__(self, owner: Owner, store: StoreClient) -> None:
        self._owner = owner
        self._store = store
        self._known: set[str] = set()
        self._pieces: dict[str, list[frames.RerunFrame]] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def busy(self) -> bool:
        """Whether control still has to hear of a prompt."""
        return bool(self._known)

    def take(self, kind: int, payload: memoryview) -> bool:
        """Handle one frame if it is ours; answers whether it was."""
        if kind != Kind.JOB_CALL:
            return False
        frame = _decode_call(payload)
        pieces = self._pieces.setdefault(frame.call_id, [])
        pieces.append(frame)
        if frame.more:
            if len(self._pieces) > MAX_PIECES:
                self._pieces.pop(next(iter(self._pieces)))
            return True
        del self._pieces[frame.call_id]
        if frame.call_id not in self._known and pieces[0].meta:
            self._start(pieces)
        return True

    def _start(self, pieces: list[frames.RerunFrame]) -> None:
        meta = _decode_meta(pieces[0].meta)
        body = b"".join(piece.body for piece in pieces)
        call_id = pieces[0].call_id
        body, unsaid = native.filled(body, told(self._owner, meta.model))
        call = Call(id=call_id, model=meta.model, body=body, stream=False, started_at=monotonic())
        call.unsaid = unsaid
        call.tenant = meta.tenant
        call.session = call.affinity = meta.session or None
        call.priority = Priority.LOW
        call.shard = self._owner.slot
        delivery = JobDelivery(self._owner, call, meta.path)
        delivery.on_record = lambda record: self._ended(delivery, record)
        self._known.add(call_id)
        try:
            if self._owner.draining:
                raise Draining("this gateway is shutting down", reason="draining")
            self._owner.submit(delivery, SlotFlag.JOB)
        except TpoError as e:
            delivery.send_error(e)

    def _ended(self, delivery: JobDelivery, record: dict[str, Any]) -> None:
        question = ask.EndPrompt(
            delivery.call.id, record["status"], orjson.dumps(record), delivery.later
        )
        task = asyncio.get_running_loop().create_task(self._tell(question))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _tell(self, question: ask.EndPrompt) -> None:
        """Tell control until it has taken it; there is no other copy of the answer."""
        value = ask.encode(question)
        said = None
        while said is None:
            said = await self._store.post(ask.JOBS, "", value, wait_s=ask.ASK_S)
            if said is None:
                await asyncio.sleep(RETRY_S)
        self._known.discard(question.call_id)
