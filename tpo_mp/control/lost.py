"""What becomes of a call whose process died: letter, record, the failed result of an async one."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterable, Iterator

import msgspec
import orjson

from tpo_mp.dialects import native
from tpo_mp.dialects import openai_responses_background as background
from tpo_mp.errors import WorkerLost
from tpo_mp.shm.callid import mark_of, to_text
from tpo_mp.shm.frames import RecordFrame, SlotMeta
from tpo_mp.shm.registry import Orphan, SlotFlag, SlotState
from tpo_mp.store.letters import Letter
from tpo_mp.store.questions import RESPONSES, RESULTS, response_key
from tpo_mp.store.shelf import Shelf
from tpo_mp.types import Terminal

from . import results

REASON = "worker_lost"
UNRECORDED = "record_lost"
"""Of a call that was answered, nobody knows how."""
_AS_LONG_AS_ALLOWED_S = 1e9
_STATUS_WITHIN = 400

_records = msgspec.msgpack.Decoder(list[RecordFrame]).decode
_pack = msgspec.msgpack.Encoder().encode
_meta = msgspec.msgpack.Decoder(SlotMeta).decode
_NO_META = SlotMeta("", "", "", "", "", False)


def record_ids(batches: Iterable[bytes]) -> Iterator[str]:
    """Call ids of batches of call records; a damaged batch has none."""
    for batch in batches:
        with contextlib.suppress(msgspec.MsgspecError):
            for record in _records(batch):
                yield record.call_id


def letter_of(orphan: Orphan, died_at: float) -> Letter:
    """Write the letter of a call that nobody will finish; ``died_at`` in epoch seconds."""
    try:
        meta = _meta(orphan.meta)
    except msgspec.MsgspecError:
        meta = _NO_META
    return Letter(
        call_id=to_text(orphan.call_id),
        client_request_id=meta.client_request_id,
        session=meta.session,
        reason=REASON,
        dropped_at=died_at,
        model=meta.model,
        tenant=meta.tenant,
        path=meta.path,
        body=orphan.body or b"",
        truncated=orphan.body is None or bool(orphan.flags & SlotFlag.TRUNCATED),
        bytes_sent=orphan.bytes_sent,
    )


def records_of(lost: Iterable[tuple[Orphan, float]]) -> bytes:
    """A batch of call records, as a worker would have sent it, of calls that died with theirs.

    ``lost`` are calls with the instants of their worker's death; a record's end is when it became
    known.  What only the worker knew is missing: the key's id, the client's address, what a backend
    did.  How a call ended that was answered is missing, too: its status is 0.
    """
    return _pack([_record_of(orphan, died_at) for orphan, died_at in lost])


def _record_of(orphan: Orphan, died_at: float) -> RecordFrame:
    try:
        meta = _meta(orphan.meta)
    except msgspec.MsgspecError:
        meta = _NO_META
    began_at = orphan.started_wall_ms / 1e3
    settled = orphan.state_before is SlotState.SETTLED
    return RecordFrame(
        call_id=to_text(orphan.call_id), finished_at=time.time(), started_at=began_at,
        method="POST", path=meta.path, status=0 if settled else WorkerLost(REASON).status,
        terminal=Terminal.CRASHED,
        model=meta.model, backend="none", stream=meta.stream, tenant=meta.tenant, key_id="",
        session=meta.session, client_request_id=meta.client_request_id,
        prompt_tokens=-1, completion_tokens=-1,
        bytes_in=len(orphan.body or b""), bytes_out=max(orphan.bytes_sent, 0),
        duration_s=max(died_at - began_at, 0.0), first_byte_s=0.0, attempts=orphan.attempts,
        shard=-1, error=UNRECORDED if settled else REASON,
    )  # fmt: skip


def note_failure(shelf: Shelf, orphan: Orphan, letter: Letter) -> None:
    """Tell whoever fetches an asynchronous call's result that there will be none."""
    if not orphan.flags & SlotFlag.ASYNC:
        return
    lost = WorkerLost("the worker that ran the call died")
    if letter.path == background.PATH:
        _note_failed_response(shelf, letter, lost)
        return
    _, known = shelf.get(RESULTS, letter.call_id)
    if known is not None and b'"processing"' not in known[:_STATUS_WITHIN]:
        return
    error = native.error_object(lost, letter.call_id)
    failed = native.record(
        letter.call_id, letter.session or None, "failed", error=error, model=letter.model
    )
    results.keep(shelf, letter.call_id, orjson.dumps(failed), _AS_LONG_AS_ALLOWED_S)


def _note_failed_response(shelf: Shelf, letter: Letter, error: WorkerLost) -> None:
    """The kept response of a background call will stay unfinished: it failed."""
    mark = mark_of(letter.call_id, letter.tenant)
    name = response_key(mark, background.response_id(letter.call_id))
    _, known = shelf.get(RESPONSES, name)
    if known is None:
        return
    record = orjson.loads(known)
    response = record["response"]
    if response["status"] in background.UNFINISHED:
        record["response"] = background.broken(response, error)
        shelf.put(RESPONSES, name, orjson.dumps(record), _AS_LONG_AS_ALLOWED_S)
