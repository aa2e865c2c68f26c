"""What a surface may ask the store about dead letters, as table and key of an ordinary question.

::

    get  letters  LetterQuery.key()   -> JSON {entries, count, total, next}
    get  letters  <call id>           -> JSON of one letter with its payload
    put  letters  <call id>  status   -> marks it ("replayed", "dropped", "aged_out")
    get  results  <call id>           -> the bytes that were put there

Invariants: both sides build and read keys with this file alone.
"""

from __future__ import annotations

from typing import Annotated, Final

import msgspec
from msgspec import Meta, Struct

LETTERS: Final = "letters"
RESULTS: Final = "results"
STATUSES: Final = frozenset({"open", "replayed", "dropped", "aged_out"})
DEFAULT_LIMIT: Final = 1000


class LetterQuery(Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """One page of open dead letters, newest first."""

    limit: Annotated[int, Meta(ge=1, le=10_000)] = DEFAULT_LIMIT
    after: Annotated[int, Meta(ge=0)] | None = None
    """The ``next`` of the page before."""
    tenant: str | None = None
    """Only this tenant's letters."""

    def key(self) -> str:
        """The key to ask for."""
        return msgspec.json.encode(self).decode()

    @classmethod
    def from_key(cls, key: str) -> LetterQuery | None:
        """Read a key back; ``None`` when it names a single letter or is no query."""
        if not key.startswith("{"):
            return None
        try:
            return msgspec.json.decode(key, type=cls)
        except msgspec.MsgspecError:
            return None
