"""The words of the house that every room uses: call, reply, stream, sink, phase.

Invariants: nothing here does I/O or knows a wire dialect.
A ``Call`` belongs to one shard at a time and is never shared between processes; what crosses a
ring is a frame of ``shm.frames``.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, IntEnum, StrEnum
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Protocol, runtime_checkable

from .errors import TpoError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


class Phase(IntEnum):
    """Where a stage stands; phases nest, outermost first, in this order."""

    ADMIT = 0
    RAG = 1
    STREAM = 2
    POST_PROCESS = 3
    ASSEMBLE = 4
    INFERENCE = 5
    ATTEMPT = 6


STAGES = ("rag", "assemble", "inference", "post_process", "stream")
"""The five stages as users know them, in the order a call meets them."""


class Priority(IntEnum):
    """Admission class of a call; higher is served first."""

    LOW = 0
    NORMAL = 1
    HIGH = 2
    CRITICAL = 3


class Terminal(StrEnum):
    """How a call ended; every call gets exactly one."""

    __hash__ = str.__hash__  # the enum's own is a Python function, called per lookup

    DONE = "done"
    FAILED = "failed"
    SHED = "shed"
    EXPIRED = "expired"
    CANCELLED = "cancelled"
    CRASHED = "crashed"


class Dialect(StrEnum):
    """Wire dialect of a body."""

    __hash__ = str.__hash__  # the enum's own is a Python function, called per lookup

    OPENAI_CHAT = "openai_chat"
    OPENAI_COMPLETIONS = "openai_completions"
    OPENAI_EMBEDDINGS = "openai_embeddings"
    OPENAI_RESPONSES = "openai_responses"
    ANTHROPIC_MESSAGES = "anthropic_messages"
    ANTHROPIC_COUNT = "anthropic_count"
    ANTHROPIC_COMPLETE = "anthropic_complete"
    GEMINI = "gemini"
    GEMINI_COUNT = "gemini_count"
    GEMINI_EMBEDDINGS = "gemini_embeddings"


# A member is looked up in its enum for a tenth of a microsecond; these are wanted for each call.
DONE: Final = Terminal.DONE
_CHAT: Final = Dialect.OPENAI_CHAT
_NORMAL: Final = Priority.NORMAL


class Tap(Enum):
    """How much of a reply a stage must see."""

    BYTES = 0
    FRAMES = 1
    TEXT = 2


@dataclass(frozen=True, slots=True)
class Principal:
    """Whom a request speaks for: a key of ours, its tenant and tier, and whether it may operate."""

    tenant: str
    key_id: str
    tier: str
    admin: bool = False


EVERYBODY = Principal("", "", "standard", admin=True)
"""Whoever can reach a gateway that asks for no key."""
NOBODY = Principal("", "", "")
"""A caller without a key, on a route that is open to all."""


class Usage:
    """Token counts reported by the backend; ``-1`` means not reported.

    ``cached`` are those of the prompt that the backend had in its cache, 0 when it named none.
    """

    __slots__ = ("cached", "completion", "prompt")

    def __init__(self, prompt: int = -1, completion: int = -1, cached: int = 0) -> None:
        self.prompt = prompt
        self.completion = completion
        self.cached = cached


class Sink(Protocol):
    """Where a stream's bytes go."""

    def data(self, chunk: bytes) -> None:
        """Take body bytes (never empty)."""

    def end(self, error: TpoError | None) -> None:
        """Take the end, exactly once, unless the stream was cancelled."""


@runtime_checkable
class Stream(Protocol):
    """A reply whose body is still arriving.

    Nothing is delivered before ``attach``; afterwards every byte goes to the sink in order.
    ``cancel`` is idempotent and silences the sink.
    """

    def attach(self, sink: Sink) -> None: ...

    def pause(self) -> None: ...

    def resume(self) -> None: ...

    def cancel(self) -> None: ...


class CacheCounts(NamedTuple):
    """What was looked up, kept and lost in a cache, since the host started."""

    hits: int
    misses: int
    kept: int
    evicted: int


class TierResult(IntEnum):
    """What became of a lookup in the second tier."""

    HIT = 0
    MISS = 1
    BAD = 2
    """Something lies there that is no answer to this call."""
    FAILED = 3
    SKIPPED = 4
    """It was not asked, since it is away or there is too much to ask."""


class TierCounts(NamedTuple):
    """What was looked up in the second tier since the host started."""

    hits: int
    misses: int
    unavailable: int


class AnswerMark(NamedTuple):
    """Where an answer was found, for asking later whether it would be found there still."""

    line_at: int
    line: bytes
    place: int
    claimed: int
    generation: int
    expires_ms: int


class AnswerCache(Protocol):
    """Answers that all processes of the host find again, by keys of 16 bytes; bounded in bytes."""

    most: int
    """Bytes of the longest answer there can be."""

    @property
    def generation(self) -> int:
        """Changes with every flush."""
        ...

    def find(self, key: bytes) -> bytes | None:
        """The answer kept under a key, if there is one."""
        ...

    def find_marked(self, key: bytes) -> tuple[bytes, AnswerMark] | None:
        """The same, and where it lies."""
        ...

    def still(self, mark: AnswerMark) -> bool:
        """Whether ``find`` would answer what it did when this was made."""
        ...

    def count(self, *, hit: bool) -> None:
        """Count a call that was looked up, and whether it was answered so."""
        ...

    def keep(self, key: bytes, answer: bytes, ttl_s: float, generation: int) -> bool:
        """Keep an answer that was asked for in this generation; False when it was not kept."""
        ...

    def flush(self) -> None:
        """Forget every answer; raises ``Shed``."""
        ...

    def counts(self) -> CacheCounts:
        """What all processes of the host counted."""
        ...

    def count_tier(self, result: TierResult) -> None:
        """Count a call that was looked up in the second tier."""
        ...

    def tier_counts(self) -> TierCounts:
        """What all processes of the host counted of it."""
        ...

    def sizes(self) -> Iterator[int]:
        """The bytes of each answer that can be found now; 0 every now and then, to let go."""
        ...


class AnswerTier(Protocol):
    """Answers that several hosts find again; asked when the host's own memory has none."""

    generation: bytes | None
    """Changes with every flush; ``None`` while it is not known."""

    @property
    def up(self) -> bool:
        """Whether it is asked at all now."""
        ...

    def find(
        self, key: bytes, whose: bytes, tell: Callable[[tuple[bytes, float] | None], None]
    ) -> None:
        """Tell the answer kept for this key and caller, and the seconds it has left, or none.

        ``tell`` is called once, within a time that the configuration says.
        """
        ...

    def keep(
        self, key: bytes, whose: bytes, answer: bytes, ttl_s: float, generation: bytes | None
    ) -> None:
        """Keep an answer that was asked for in this generation, some time soon or not at all."""
        ...

    async def flush(self) -> None:
        """Forget every answer, on all hosts; raises ``Shed``."""
        ...

    def close(self) -> None:
        """Nothing is asked any more."""
        ...


class NoCache:
    """The ``AnswerCache`` of a process that was given none: it finds nothing and keeps nothing."""

    most = 0
    generation = 0

    def find(self, key: bytes) -> bytes | None:  # noqa: ARG002
        """Nothing is there."""
        return None

    def find_marked(self, key: bytes) -> tuple[bytes, AnswerMark] | None:  # noqa: ARG002
        """Nothing is there."""
        return None

    def still(self, mark: AnswerMark) -> bool:  # noqa: ARG002
        """Nothing ever was."""
        return False

    def count(self, *, hit: bool) -> None:
        """Nobody asks for it."""

    def keep(self, key: bytes, answer: bytes, ttl_s: float, generation: int) -> bool:  # noqa: ARG002
        """Nothing is kept."""
        return False

    def flush(self) -> None:
        """There is nothing to forget."""

    def counts(self) -> CacheCounts:
        """Nothing was ever asked."""
        return CacheCounts(0, 0, 0, 0)

    def count_tier(self, result: TierResult) -> None:
        """Nobody asks for it."""

    def tier_counts(self) -> TierCounts:
        """Nothing was ever asked."""
        return TierCounts(0, 0, 0)

    def sizes(self) -> Iterator[int]:
        """There are none."""
        return iter(())


class Reply:
    """An answer whose first byte exists: a whole body, or a stream of one.

    ``headers`` are allow-listed response header lines, each ending in CRLF.
    """

    __slots__ = (
        "backend", "body", "content_type", "finish_reason", "headers", "status", "stream", "usage"
    )  # fmt: skip

    def __init__(
        self,
        status: int,
        body: bytes | None,
        *,
        stream: Stream | None = None,
        content_type: bytes = b"application/json",
        headers: bytes = b"",
        backend: str = "",
    ) -> None:
        self.status = status
        self.body = body
        self.stream = stream
        self.content_type = content_type
        self.headers = headers
        self.backend = backend
        self.usage: Usage | None = None
        self.finish_reason = ""


class Aside(NamedTuple):
    """What was asked of backends for a call, beside its answer; what has no price costs nothing."""

    tokens: int
    cost_usd: float


class Ending(NamedTuple):
    """How a call ended: tokens its backend reported (-1: not), and how often one was asked."""

    terminal: Terminal
    prompt: int
    completion: int
    error: TpoError | None
    attempts: int
    aside: Aside | None = None


TOOK_S: Final = (
    0.002, 0.005, 0.01, 0.02, 0.035, 0.06, 0.1, 0.16, 0.25, 0.4, 0.65, 1.0, 1.6, 2.5, 4.0, 6.5,
    10.0, 16.0, 25.0, 40.0, 65.0, 100.0, 200.0, 400.0,
)  # fmt: skip
"""Upper bounds of the buckets in which times to a first byte are counted; one more is open."""


class TryTally(NamedTuple):
    """How tries ended: answered, failed, met no room, or had our key refused.

    ``times`` are the answered ones by their time to the first byte, in the buckets of ``TOOK_S``.
    """

    good: int = 0
    bad: int = 0
    busy: int = 0
    refused: int = 0
    times: tuple[int, ...] = (0,) * (len(TOOK_S) + 1)

    def plus(self, other: TryTally) -> TryTally:
        """Both together."""
        return TryTally(
            self.good + other.good,
            self.bad + other.bad,
            self.busy + other.busy,
            self.refused + other.refused,
            tuple(a + b for a, b in zip(self.times, other.times, strict=True)),
        )

    def less(self, other: TryTally) -> TryTally:
        """What came since ``other`` was read."""
        return TryTally(
            self.good - other.good,
            self.bad - other.bad,
            self.busy - other.busy,
            self.refused - other.refused,
            tuple(a - b for a, b in zip(self.times, other.times, strict=True)),
        )

    def mean_s(self) -> float | None:
        """The mean time of the answered ones: each counts as the middle of its bucket."""
        answered = sum(self.times)
        if not answered:
            return None
        bounds = (0.0, *TOOK_S, TOOK_S[-1])
        middles = ((a + b) / 2 for a, b in pairwise(bounds))
        return sum(n * m for n, m in zip(self.times, middles, strict=True)) / answered

    def quantile_s(self, share: float) -> float | None:
        """The time within which that share was answered, as near as the buckets tell."""
        left = share * sum(self.times)
        if not left:
            return None
        below = 0.0
        for bound, n in zip((*TOOK_S, TOOK_S[-1]), self.times, strict=True):
            if n and left <= n:
                return below + (bound - below) * left / n
            left -= n
            below = bound
        return TOOK_S[-1]


NO_DEADLINE = float("inf")


class Call:
    """One request on its way; written by the shard that holds it.

    Instants are ``time.monotonic`` seconds.
    ``body`` is the request body in ``dialect``; ``forward`` are header lines that go upstream,
    ``authorization`` is the client's own credential.
    ``idempotency_key`` is the client's, empty if it sent none.
    ``tier`` is that of the caller's key, known to the shard that admits the call.
    ``patience_s`` is how long the client's SDK waits for a first byte.
    ``peer`` is the client's address; ``note`` is what a backend has to say of how it answered
    and ``seen`` how often it saw the request, this time included (0: it did not count).
    ``cache`` is how a cache answered it (``hit``, ``miss``, ``coalesced``, ``semantic``), or
    ``replayed``: its idempotency key did; empty if none was asked.  ``reuse`` is what the client
    allows of a cache (a ``pipeline.fingerprint.Reuse``), and ``fingerprint`` keeps the key of its
    body once somebody asked for it.
    ``guard`` is what a guard found in it (``flag:CLASS``, ``block:CLASS``), empty if nothing.
    ``sdk_try`` is how often the client's SDK says that it asked before, -1 when it says nothing.
    ``slot`` is its place in the in-flight registry, ``shard`` the slot of the shard that serves it.
    ``choices`` are the backends that its route picks from, if these are several, and ``tried``
    those that it shall rather not pick; ``attempts`` counts how often one was asked.
    ``rerun`` says that it ran before, on a worker that died; ``unclear`` that a backend which was
    asked for it may have done its work, though it was asked again.
    ``limit_lines`` are header lines for its answer about what is left of limits.
    ``endings`` are told of its end (see ``pipeline.endings``).
    ``audited`` is what its record shall hold of its text (see ``pipeline.audited``), mostly none.
    ``admitted`` says that the ADMIT stages let it pass, ``spent`` is where its time goes (see
    ``pipeline.stage_times``).  ``aside`` is what else was asked of backends for it, mostly nothing.
    ``unsaid`` are fields of its body that a native client left to the backend asked; else ``None``.
    """

    __slots__ = (
        "admitted", "affinity", "aside", "attempts", "audited", "authorization", "backend", "body",
        "cache", "choices", "client_request_id", "deadline", "dialect", "endings", "fingerprint",
        "first_byte_at", "forward", "guard", "id", "idempotency_key", "key_id", "limit_lines",
        "model", "note", "patience_s", "peer", "priority", "rerun", "reuse", "sdk_try", "seen",
        "session", "shard", "slot", "spent", "started_at", "stream", "tenant", "tier", "tried",
        "unclear", "unsaid", "upstream_at", "usage_wanted",
    )  # fmt: skip

    def __init__(self, id: str, model: str, body: bytes, stream: bool, started_at: float) -> None:
        self.id = id
        self.model = model
        self.body = body
        self.stream = stream
        self.started_at = started_at
        self.dialect: Dialect = _CHAT
        self.tenant = self.tier = self.key_id = ""
        self.idempotency_key = b""
        self.session: str | None = None
        self.affinity: str | None = None
        self.priority: Priority = _NORMAL
        self.deadline = NO_DEADLINE
        self.patience_s = NO_DEADLINE
        self.client_request_id = ""
        self.authorization: bytes | None = None
        self.peer = self.note = self.cache = self.guard = ""
        self.reuse = 0
        self.sdk_try = -1
        self.fingerprint: Any = None
        self.seen = 0
        self.forward = b""
        self.usage_wanted = False
        self.slot = self.shard = -1
        self.attempts = 0
        self.backend = ""
        self.choices: tuple[str, ...] = ()
        self.tried: set[str] | None = None
        self.upstream_at = self.first_byte_at = 0.0
        self.rerun = self.unclear = False
        self.limit_lines = b""
        self.endings: list[Callable[[Ending], object]] | None = None
        self.audited: Any = None
        self.admitted = False
        self.spent: list[float] | None = None
        self.aside: Aside | None = None
        self.unsaid: tuple[str, ...] | None = None

    def __copy__(self) -> Call:
        """Written out, which takes a fifth of the time that ``copy`` takes without it."""
        made: Call = object.__new__(Call)
        made.admitted, made.affinity, made.aside = self.admitted, self.affinity, self.aside
        made.attempts, made.audited = self.attempts, self.audited
        made.authorization, made.backend, made.body = self.authorization, self.backend, self.body
        made.cache, made.choices = self.cache, self.choices
        made.client_request_id, made.deadline = self.client_request_id, self.deadline
        made.dialect, made.endings, made.fingerprint = self.dialect, self.endings, self.fingerprint
        made.first_byte_at, made.forward, made.guard = self.first_byte_at, self.forward, self.guard
        made.id, made.idempotency_key, made.key_id = self.id, self.idempotency_key, self.key_id
        made.limit_lines, made.model, made.note = self.limit_lines, self.model, self.note
        made.patience_s, made.peer, made.priority = self.patience_s, self.peer, self.priority
        made.rerun, made.reuse, made.sdk_try = self.rerun, self.reuse, self.sdk_try
        made.seen, made.session, made.shard = self.seen, self.session, self.shard
        made.slot, made.spent, made.started_at = self.slot, self.spent, self.started_at
        made.stream, made.tenant, made.tier = self.stream, self.tenant, self.tier
        made.tried, made.unclear, made.upstream_at = self.tried, self.unclear, self.upstream_at
        made.unsaid, made.usage_wanted = self.unsaid, self.usage_wanted
        return made


LEASE_NUMBERS = 256


class Quota:
    """What is used of one name's limits, for the moment of one update.

    ``cells`` are eight numbers, of which the update stamps the last.  ``held`` are places that this
    process has, ``requests`` and ``tokens`` its lease: what it took in advance; ``others_`` those
    of all other living processes.  ``lost_`` is what dead ones had left of their leases: it is told
    once, for giving back.  ``unspent`` is this process's word of what it has left of its lease; it
    may grow beyond what was taken, by what calls give back.
    """

    __slots__ = (
        "cells", "held", "lost_requests", "lost_tokens", "number", "others_held",
        "others_requests", "others_tokens", "requests", "tokens", "unspent", "voided",
    )  # fmt: skip

    def __init__(self) -> None:
        self.cells: list[float] = [0.0] * 8
        self.held = self.requests = self.tokens = self.number = 0
        self.others_held = self.others_requests = self.others_tokens = 0
        self.lost_requests = self.lost_tokens = 0
        self.unspent: memoryview[int] | list[int] = [0]
        self.voided = False

    def void(self) -> None:
        """Begin anew: whatever anybody has of a lease counts no more, and is never told as lost.

        Who has one finds another number here at its next update.
        """
        self.voided = True
        self.others_requests = self.others_tokens = 0
        if self.requests or self.tokens:
            self.lease(0, 0)

    def lease(self, requests: int, tokens: int) -> int:
        """Have another lease (0, 0: none any more); answers its word, to begin ``unspent`` with."""
        self.number = (self.number + 1) % LEASE_NUMBERS
        self.requests, self.tokens = requests, tokens
        return tokens << 24 | requests << 8 | self.number


class QuotaUse(NamedTuple):
    """What is used of a name: its cells, and the calls and tokens in them only held in advance."""

    cells: tuple[float, ...]
    requests: int
    tokens: int

    def spent(self) -> tuple[float, float, float, float]:
        """Of one that counts what is spent: since when, how much, by how many calls, changed at.

        Without what is only held in advance.
        """
        since, used, calls, at = self.cells[:4]
        return (since, max(used - self.tokens, 0.0), max(calls - self.requests, 0.0), at)


class QuotaReading(NamedTuple):
    """One name as a reader found it in a row.

    ``unspent`` calls and ``unspent_tokens`` are counted in the cells, but only held in advance.
    """

    row: int
    name: str
    cells: tuple[float, ...]
    held: int
    unspent: int
    unspent_tokens: int
