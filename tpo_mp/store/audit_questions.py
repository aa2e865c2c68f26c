"""What a surface may ask of the call records, as table and key of an ordinary question.

::

    get  audit        AuditQuery.key()  -> JSON {entries, count, next}
    get  audit_stats  AuditQuery.key()  -> JSON of the sums, with ``complete``

Invariants: both sides build and read keys with this file alone.
"""

from __future__ import annotations

from typing import Annotated, Final

import msgspec
from msgspec import Meta, Struct

AUDIT: Final = "audit"
AUDIT_STATS: Final = "audit_stats"
ASK_S: Final = 2.0
"""How long an answer may take; nobody's request waits for it but the one who asked."""
MAX_PAGE: Final = 1000


class Cursor(Struct, frozen=True, array_like=True):
    """Where a page ended: the place of its last record."""

    segment: int
    offset: int
    index: int

    @property
    def before(self) -> int:
        """Blocks that begin from here on have nothing left."""
        return self.offset + (self.index > 0)

    def text(self) -> str:
        """As clients carry it."""
        return f"{self.segment}-{self.offset}-{self.index}"

    @classmethod
    def read(cls, text: str) -> Cursor | None:
        """Read it back; ``None`` when it is none."""
        parts = text.split("-")
        if len(parts) != 3 or not all(p.isascii() and p.isdigit() and len(p) < 16 for p in parts):
            return None
        return cls(*map(int, parts))


class AuditQuery(Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """Which records; a filter that is ``None`` lets all pass, and all given must.

    ``request`` is a call's id or what its client called it; instants are epoch seconds at which
    calls ended, ``since`` inclusive and ``until`` not.
    """

    limit: Annotated[int, Meta(ge=1, le=MAX_PAGE)] = 100
    after: Cursor | None = None
    model: str | None = None
    tenant: str | None = None
    key_id: str | None = None
    session: str | None = None
    request: str | None = None
    tag: str | None = None
    terminal: str | None = None
    status: int | None = None
    cache_hit: bool | None = None
    min_latency_s: float | None = None
    since: float | None = None
    until: float | None = None

    def key(self) -> str:
        """The key to ask for."""
        return msgspec.json.encode(self).decode()

    @classmethod
    def from_key(cls, key: str) -> AuditQuery | None:
        """Read a key back; ``None`` when it is no query."""
        try:
            return msgspec.json.decode(key, type=cls)
        except msgspec.MsgspecError:
            return None
