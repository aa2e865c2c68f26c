"""What crosses a ring: one kind byte, a 32-bit stream number, then the frame's own bytes.

::

    0        1..4             5 …
    kind u8  stream u32 (LE)  payload

``stream`` numbers a forwarded call on its owner's side; together with the ring's source seat it is
unique while the call lives.  In FOLLOW and its kin it numbers a subscription of the follower.
Data frames carry raw body bytes so that no codec touches them; all others carry one msgpack struct
of this file, but for three.  SYNC, worker→control: the calls in these registry slots (u32 LE each)
wait until they are on disk; SYNCED answers it, or UNSYNCED when the disk refused them, and both are
empty.  Their stream is the worker's number of the question.  An engine's END is empty too, or one
byte when its answer was cut off.  PEER carries what a feature says to
itself in another worker; its stream is the topic's CRC-32 and its bytes are the feature's own.

Invariants: structs are frozen, positional (``array_like``) and only ever grow at the end; nothing
is pickled.  Control frames (credit, cancel, end, error, bounce, broken) use the ring's reserved
eighth.
"""

from __future__ import annotations

from enum import IntEnum
from struct import Struct as Layout

import msgspec

from tpo_mp.errors import WireError

HEAD = Layout("<BI")


class Kind(IntEnum):
    """First byte of every record."""

    CALL = 1
    CREDIT = 2
    CANCEL = 3
    REPLY = 4
    DATA = 5
    END = 6
    BOUNCE = 7
    BROKEN = 8
    RESULT_QUERY = 9
    RESULT_ANSWER = 10
    FOLLOW = 14
    FOLLOWED = 15
    EVENT = 16
    EVENT_CREDIT = 17
    UNFOLLOW = 18
    RECORDS = 20
    STORE_PUT = 21
    STORE_GET = 22
    STORE_ANSWER = 23
    DEAD_LETTER = 24
    RERUN = 25
    SYNC = 26
    SYNCED = 27
    UNSYNCED = 33
    CANCEL_CALL = 28
    CANCEL_ANSWER = 29
    JOB_CALL = 30
    REPLAY = 32
    EVENTS_QUERY = 40
    EVENTS_ANSWER = 41
    PEER = 50


class _Frame(msgspec.Struct, frozen=True, array_like=True, gc=False):
    pass


class CallFrame(_Frame, frozen=True):
    """A→B: run this call; ``body`` is inline, or lies in A's arena at ``arena_offset``.

    ``body_crc`` proves that the arena still holds this call's body when B reads it.
    With a ``key`` B was chosen for it, and the call begins at the stage that shares calls by key.
    """

    call_id: str
    config_epoch: int
    map_version: int
    model: str
    stream: bool
    dialect: str
    tenant: str
    key_id: str
    session: str | None
    affinity: str | None
    priority: int
    budget_s: float
    client_request_id: str
    authorization: bytes | None
    forward: bytes
    usage_wanted: bool
    body: bytes
    arena_offset: int
    body_length: int
    body_crc: int = 0
    peer: str = ""
    patience_s: float = float("inf")
    reuse: int = 0
    key: bytes = b""
    sdk_try: int = -1
    unsaid: tuple[str, ...] | None = None


class CreditFrame(_Frame, frozen=True):
    """A→B: the client took this many bytes."""

    n: int


class ReplyFrame(_Frame, frozen=True):
    """B→A: the reply's head; ``body`` is whole for small unary replies, else DATA frames follow."""

    status: int
    content_type: bytes
    headers: bytes
    backend: str
    stream: bool
    body: bytes | None
    prompt_tokens: int
    completion_tokens: int
    attempts: int
    first_byte_s: float
    cached_tokens: int = 0
    cache: str = ""
    unclear: bool = False
    aside: tuple[int, float] | None = None


class EndFrame(_Frame, frozen=True):
    """B→A: the body is complete, or the call failed (with an upstream's own error body)."""

    error: WireError | None
    prompt_tokens: int
    completion_tokens: int
    finish_reason: str
    attempts: int = 0
    backend: str = ""
    error_body: bytes | None = None
    cached_tokens: int = 0
    unclear: bool = False
    aside: tuple[int, float] | None = None


class EngineCall(_Frame, frozen=True):
    """Worker→engine: answer a request of ``length`` bytes for this HTTP target.

    It is for the engine of this ``epoch`` only.  ``body`` is its beginning, DATA frames bring the
    rest of it.
    """

    epoch: int
    target: bytes
    length: int
    body: bytes


class EngineReply(_Frame, frozen=True):
    """Engine→worker: the answer's head, as HTTP has it; without a ``body`` DATA frames follow."""

    status: int
    content_type: bytes
    retry_after_s: float | None
    body: bytes | None


class RecordFrame(_Frame, frozen=True):
    """One finished call: audit, access line and spend in one.  Instants are epoch seconds.

    ``cost_usd`` is what its backend asks for it, 0 when none was asked; ``None``: nobody said a
    price of the model, or no tokens were reported.  ``cached_tokens`` are a part of the prompt's.
    ``aside_tokens`` are those of what was asked for it beside its answer, whose cost is in
    ``cost_usd``; left out when there are none.
    ``cache`` is as ``Call.cache``, ``guard`` as ``Call.guard``.
    ``input`` and ``output`` are what was said, ``None`` and not sent unless that is kept; bit 0 of
    ``cut`` says that the first is not all of it, bit 1 the second.  ``tags`` are the client's.
    ``sealed`` are input and output instead, once they were sealed for the disk.
    """

    call_id: str
    finished_at: float
    started_at: float
    method: str
    path: str
    status: int
    terminal: str
    model: str
    backend: str
    stream: bool
    tenant: str
    key_id: str
    session: str
    client_request_id: str
    prompt_tokens: int
    completion_tokens: int
    bytes_in: int
    bytes_out: int
    duration_s: float
    first_byte_s: float
    attempts: int
    shard: int
    error: str
    peer: str = ""
    cost_usd: float | None = None
    cached_tokens: int = 0
    cache: str = ""
    guard: str = ""
    input: str | None = None
    output: str | None = None
    cut: int = 0
    aside_tokens: int = 0
    tags: list[str] = []
    sealed: list[bytes | None] = []


class DeadLetterFrame(_Frame, frozen=True):
    """Worker→control: an accepted call that will not be finished.

    A body longer than a record comes in several frames of the same call id; ``at`` is where the
    frame's part of it begins, and ``more`` says that another follows.
    """

    call_id: str
    client_request_id: str
    session: str
    reason: str
    dropped_at: float
    model: str
    tenant: str
    path: str
    body: bytes
    more: bool = False
    truncated: bool = False
    bytes_sent: int = 0
    at: int = 0


class StorePut(_Frame, frozen=True):
    """Worker→control: keep ``value`` under (table, key) for ``ttl_s``; answered by STORE_ANSWER.

    A long value comes in several frames of the same token; ``at`` is where the frame's part of it
    begins, and ``more`` says that another follows.
    """

    token: int
    table: str
    key: str
    value: bytes
    ttl_s: float
    more: bool = False
    at: int = 0


class StoreGet(_Frame, frozen=True):
    """Worker→control: read (table, key)."""

    token: int
    table: str
    key: str


class StoreAnswer(_Frame, frozen=True):
    """Control→worker: ``ok`` and the value (``None``: no such key), whole or in pieces."""

    token: int
    ok: bool
    value: bytes | None
    more: bool = False


class ResultQuery(_Frame, frozen=True):
    """Worker→worker: how does this asynchronous call stand?  Waits up to ``wait_s``."""

    token: int
    call_id: str
    wait_s: float


class ResultAnswer(_Frame, frozen=True):
    """Worker→worker: the record as JSON, or ``None`` when unknown here."""

    token: int
    record: bytes | None


class EventsQuery(_Frame, frozen=True):
    """Worker→worker: the events of this background response after number ``after``.

    Waits up to ``wait_s`` for one.
    """

    token: int
    call_id: str
    after: int
    wait_s: float


class EventsAnswer(_Frame, frozen=True):
    """Worker→worker: a page of events, or ``found`` is false.

    A long page comes in several frames of the same token; ``more`` says that another follows.
    """

    token: int
    found: bool
    data: bytes = b""
    last: int = -1
    run: int = 0
    ended: bool = False
    gone: bool = False
    more: bool = False


class FollowFrame(_Frame, frozen=True):
    """Worker→worker: tell me the events of this call after number ``after``, or of this session."""

    call_id: str
    session: str
    tenant: str
    after: int


class FollowedFrame(_Frame, frozen=True):
    """Worker→worker: whether the call is known here, or why its events are not told.

    ``over`` says that all of them were told before.
    """

    found: bool
    error: WireError | None
    over: bool = False


class EventFrame(_Frame, frozen=True):
    """Worker→worker: one event of a native stream; ``data`` is its JSON.

    A long one comes in several frames; ``more`` says that another follows.
    """

    call_id: str
    number: int
    name: str
    data: bytes
    more: bool = False


class RerunFrame(_Frame, frozen=True):
    """Control→worker: run this call under its own id, an orphaned asynchronous one or a job's.

    A long body comes in several frames of the same call id, ``meta`` in the first only; ``more``
    says that another follows.
    """

    call_id: str
    attempts: int
    meta: bytes
    body: bytes
    more: bool = False


class ReplayFrame(_Frame, frozen=True):
    """Control→worker: ask this dead letter again; ``attempt`` is the number of the attempt."""

    call_id: str
    attempt: int


class CancelCall(_Frame, frozen=True):
    """To a worker: end this call if it is yours; a ``token`` of 0 wants no answer."""

    token: int
    call_id: str


class CancelAnswer(_Frame, frozen=True):
    """Worker→worker: whether the call was open here."""

    token: int
    ended: bool


class SlotMeta(_Frame, frozen=True):
    """What an in-flight registry slot says about its call, for dead letters and reruns."""

    path: str
    model: str
    tenant: str
    session: str
    client_request_id: str
    stream: bool
    unsaid: tuple[str, ...] | None = None


_encode = msgspec.msgpack.Encoder().encode


def frame(kind: Kind, stream: int, body: _Frame | None = None) -> bytes:
    """Build one record."""
    return HEAD.pack(kind, stream) + (b"" if body is None else _encode(body))


def store_get(token: int, table: str, key: str) -> bytes:
    """The record that asks control for a value."""
    return frame(Kind.STORE_GET, 0, StoreGet(token, table, key))


def store_put(
    token: int, table: str, key: str, value: bytes, ttl_s: float, more: bool, at: int
) -> bytes:
    """The record that hands control a value, or the piece of one that begins at ``at``."""
    return frame(Kind.STORE_PUT, 0, StorePut(token, table, key, value, ttl_s, more, at))


def head(record: bytes) -> tuple[int, int]:
    """Kind and stream number of a record."""
    kind, stream = HEAD.unpack_from(record)
    return kind, stream


def payload(record: bytes) -> memoryview:
    """A record's bytes after its head."""
    return memoryview(record)[HEAD.size :]


def decoder(kind: type[_Frame]) -> msgspec.msgpack.Decoder[_Frame]:
    """A reusable decoder of one frame type."""
    return msgspec.msgpack.Decoder(kind)
