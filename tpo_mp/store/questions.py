"""What a surface may ask the store, as table and key of an ordinary question.

::

    get  letters  LetterQuery.key()   -> JSON {entries, count, total, next}
    get  letters  <call id>           -> JSON of one letter with its payload
    put  letters  <call id>  status   -> marks it ("replayed", "dropped", "aged_out")
    put  replays  <call id>  word     -> an attempt to ask it again begins, or has ended
    get  results  RecordQuery.key()   -> JSON {results, count, next}
    get  results  <call id>           -> the bytes that were put there
    get  responses  response_key(…)   -> JSON of a response and its input, as put there

Invariants: both sides build and read keys with this file alone.
"""

from __future__ import annotations

from typing import Annotated, Final, Literal, TypeVar

import msgspec
from msgspec import Meta, Struct

Q = TypeVar("Q")

LETTERS: Final = "letters"
REPLAYS: Final = "replays"
RESULTS: Final = "results"
RESPONSES: Final = "responses"
ASK_S: Final = 2.0
"""How long may be looked for what is stored: only who asked for it waits, no call does."""
VALUE_BYTES: Final = 36 << 20
"""Longest value of a keyed table: an answer of the longest that is read, told as JSON.

What is longer is never taken: who has such a value must not put it again and again.
"""
STATUSES: Final = frozenset({"open", "replayed", "dropped", "aged_out"})
DEFAULT_LIMIT: Final = 1000


class ReplayWord(Struct, frozen=True, array_like=True):
    """What a worker says of an attempt to ask a letter again.

    ``begun`` comes before the backend is asked, and control answers the attempt's number: a new
    one for an attempt of 0, else the same if that attempt is still this worker's, else nothing.
    ``answered``, ``failed``, ``refused`` (it can never be asked) and ``locked`` (it cannot with the
    keys of now) end the attempt;
    ``withdrawn`` ends whatever this worker has begun, for who was not told the number.
    ``unclear``: a backend may have done the work, and more than what was answered.
    """

    how: Literal["begun", "answered", "failed", "refused", "locked", "withdrawn"]
    attempt: int = 0
    unclear: bool = False

    def value(self) -> bytes:
        """As it is put."""
        return msgspec.json.encode(self)


word_of = msgspec.json.Decoder(ReplayWord).decode
"""Reads a word back."""


class RecordQuery(Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """One page of the records of asynchronous calls, latest word first."""

    limit: Annotated[int, Meta(ge=1, le=200)] = 20
    after: Annotated[int, Meta(ge=0)] | None = None
    """The ``next`` of the page before."""
    session: str | None = None
    """Only this session's."""
    state: str | None = None
    """Only records of this status."""
    mark: str = ""
    """Only records of calls whose id has this tenant's mark."""

    def key(self) -> str:
        """The key to ask for."""
        return msgspec.json.encode(self).decode()

    @classmethod
    def from_key(cls, key: str) -> RecordQuery | None:
        """Read a key back; ``None`` when it names a single record or is no query."""
        return _from_key(key, cls)


class LetterQuery(Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """One page of open dead letters, newest first."""

    limit: Annotated[int, Meta(ge=1, le=10_000)] = DEFAULT_LIMIT
    after: Annotated[int, Meta(ge=0)] | None = None
    """The ``next`` of the page before."""
    tenant: str | None = None
    """Only this tenant's letters."""
    session: str | None = None
    """Only this session's; with ``oldest``."""
    since: float | None = None
    """Only those dropped since; with ``oldest``."""
    oldest: bool = False
    """The first page in the order of the drop, instead."""

    def key(self) -> str:
        """The key to ask for."""
        return msgspec.json.encode(self).decode()

    @classmethod
    def from_key(cls, key: str) -> LetterQuery | None:
        """Read a key back; ``None`` when it names a single letter or is no query."""
        return _from_key(key, cls)


def response_key(mark: str, name: str) -> str:
    """The key of a response; ``mark`` is its tenant's, so that another's name finds nothing."""
    return f"{mark}.{name}" if mark else name


def _from_key(key: str, kind: type[Q]) -> Q | None:
    if not key.startswith("{"):
        return None
    try:
        return msgspec.json.decode(key, type=kind)
    except msgspec.MsgspecError:
        return None
