"""What asking several dead letters again takes and tells; see ``shapes`` for single ones."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta, Struct

from .native import strictly


class ReplayRequest(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which letters: all, or a session's, the oldest first."""

    session_id: Annotated[str, Meta(max_length=256)] | None = None
    limit: Annotated[int, Meta(ge=1, le=100)] = 10
    max_age_secs: Annotated[float, Meta(ge=0)] | None = None
    """Only letters dropped since so long ago."""


class ReplayedLetter(Struct):
    """What became of one: ``held`` was not asked, for an older one of its session failed."""

    request_id: str
    session_id: str | None
    status: Literal["replayed", "failed", "held"]
    call_id: str | None
    error: str | None


class ReplayedLetters(Struct):
    """All that were chosen, in the order in which they were asked."""

    letters: list[ReplayedLetter]
    replayed: int
    failed: int
    held: int


_decode = msgspec.json.Decoder(ReplayRequest).decode


def decode_replay(body: bytes) -> ReplayRequest:
    """Read one, of which ``{}`` means the oldest; raises ``InvalidRequest`` naming the field."""
    return strictly(_decode, body)
