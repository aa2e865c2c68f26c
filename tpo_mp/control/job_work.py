"""What the store's thread does for batch jobs: rows to bodies, records to lines.

Everything here runs on the keeper's thread and answers plain values.
"""

from __future__ import annotations

from typing import Any

import msgspec
import orjson

from tpo_mp.dialects import native
from tpo_mp.errors import Cancelled, Fault
from tpo_mp.shm.callid import CallIds, mark_of, marked
from tpo_mp.shm.frames import SlotMeta
from tpo_mp.store import job_questions as ask
from tpo_mp.store.job_table import JobRow, JobTable, RunningPrompt, Seat

PATH = "/api/v1/batch"
_encode_meta = msgspec.msgpack.Encoder().encode
_STATUS = {"waiting": "pending", "running": "processing"}


class Handout(msgspec.Struct, frozen=True):
    """A prompt ready to be sent to a worker."""

    prompt: RunningPrompt
    meta: bytes
    body: bytes


def start(table: JobTable, question: ask.StartJob) -> JobRow | None:
    """Keep a new job; ``None`` when the caps forbid it."""
    place = CallIds.parse(question.job_id)
    assert place is not None
    ids = CallIds(place.seat, place.epoch)
    mark = mark_of(question.job_id, question.tenant)
    prompts = [(marked(ids.new(), mark), text) for text in ask.decode_prompts(question.prompts)]
    job = JobRow(
        0, question.job_id, question.tenant, question.session, question.model,
        question.concurrency, question.max_tokens, question.temperature, "", 0, 0, 0, 0, 0.0, 0.0,
    )  # fmt: skip
    if not table.add(job, prompts, len(question.prompts)):
        return None
    return table.find(question.job_id)


def claim(table: JobTable, job: JobRow, seats: list[Seat], run: str) -> list[Handout]:
    """Take the next prompts of a job for these workers."""
    return [handout(job, prompt) for prompt in table.claim(job, seats, run)]


def handout(job: JobRow, prompt: RunningPrompt) -> Handout:
    """The call that answers a prompt, with nothing that the batch does not say."""
    said: dict[str, object] = {"max_tokens": job.max_tokens} if job.max_tokens else {}
    if job.temperature >= 0:
        said["temperature"] = job.temperature
    body = native.to_chat(prompt.prompt, job.model, said)
    meta = _encode_meta(SlotMeta(PATH, job.model, job.tenant, job.session, "", False))
    return Handout(prompt, meta, body)


def progress(job: JobRow) -> bytes:
    """A job as its routes show it."""
    ended = job.completed + job.failed + job.cancelled
    return orjson.dumps(
        {
            "job_id": job.id,
            "status": job.state,
            "total": job.total,
            "completed": job.completed,
            "failed": job.failed,
            "cancelled": job.cancelled,
            "pending": job.total - ended,
            "model": job.model,
            "session_id": job.session or None,
            "max_concurrency": job.concurrency,
            "created_at": job.created_at,
            "ended_at": job.ended_at or None,
        }
    )


def lines(table: JobTable, question: ask.AskLines) -> ask.JobAnswer:
    """NDJSON of ended prompts in their order, about ``max_bytes`` of it."""
    job = table.find(question.job_id)
    if job is None:
        return ask.JobAnswer("unknown")
    found: list[bytes] = []
    size, last = 0, question.after
    for n, call_id, state, record in table.ended(job, question.after):
        line = _line(n, shown(call_id, job.session, state, record, job.model))
        if found and size + len(line) > question.max_bytes:
            return ask.JobAnswer("ok", b"".join(found), last)
        found.append(line)
        size += len(line)
        last = n
    return ask.JobAnswer("ok", b"".join(found))


def record_of(table: JobTable, call_id: str) -> bytes | None:
    """The record of one prompt, as of any other call."""
    found = table.prompt(call_id)
    if found is None:
        return None
    state, session, record, model = found
    return orjson.dumps(shown(call_id, session, state, record, model))


def end(table: JobTable, question: ask.EndPrompt) -> JobRow | None:
    """Close a prompt with its record; one that finds no room is closed as failed."""
    record, status = question.record, question.status
    if not table.makes_room(len(record)):
        fault = Fault("no room for the answer: store.job_bytes is reached", reason="job_bytes")
        error = native.error_object(fault, question.call_id)
        record = orjson.dumps(native.record(question.call_id, None, "failed", error=error))
        status = "failed"
    return table.end(question.call_id, status, record)


def shown(
    call_id: str, session: str, state: str, record: bytes | None, model: str
) -> dict[str, Any]:
    """A prompt's record; one that ended without a worker has none of its own."""
    if record is not None:
        found: dict[str, Any] = orjson.loads(record)
        return found | {"session_id": session or None}
    status = _STATUS.get(state, state)
    error = None
    if state == "cancelled":
        cancelled = Cancelled("the prompt was cancelled on request", reason="cancelled_on_request")
        error = native.error_object(cancelled, call_id)
    return native.record(call_id, session or None, status, error=error, model=model)


def _line(n: int, record: dict[str, Any]) -> bytes:
    return orjson.dumps(
        {
            "index": n,
            "request_id": record["request_id"],
            "status": record["status"],
            "text": record["result"],
            "error": record["error"],
            "model": record.get("model", ""),
            "finish_reason": record.get("finish_reason"),
            "usage": record.get("usage"),
            "latency_ms": record.get("latency_ms"),
        },
        option=orjson.OPT_APPEND_NEWLINE,
    )
