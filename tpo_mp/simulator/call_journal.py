"""What was asked of a simulator and how it answered, kept for whoever tests an application.

Each call is one JSON object in ``Env.journal``, which is the host's: whichever worker is asked has
the calls of all.

Invariants: a key is named by its hash; a body is kept up to a cap; nothing is kept unless asked.
"""

from __future__ import annotations

from collections.abc import Callable
from time import time
from typing import Annotated, Any, Final

import orjson
from msgspec import Meta, Struct

from tpo_mp.ports import Journal
from tpo_mp.types import Call, Reply

from .endpoints import PATHS
from .keys import key_name

_ORDERED: Final = ("x-sim-error", "x-sim-fault")


class JournalOptions(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is written down of requests."""

    enabled: Annotated[bool, Meta(description="Keep requests for `GET /admin/journal`.")] = False
    body_bytes: Annotated[int, Meta(ge=0, le=65_536, description="How much of a body is kept.")] = (
        4096
    )


class CallJournal:
    """Writes calls down."""

    def __init__(
        self, options: JournalOptions, journal: Journal, clock: Callable[[], float]
    ) -> None:
        self._most = options.body_bytes
        self._journal = journal
        self._clock = clock

    def note(self, call: Call, status: int, reply: Reply | None) -> None:
        """Write a call down that ended."""
        usage = None if reply is None else reply.usage
        took_s = max(self._clock() - call.upstream_at, 0.0)
        body, whole = _kept(call.body, self._most)
        self._journal.append(
            orjson.dumps(
                {
                    "time": time() - took_s,
                    "id": call.id,
                    "client_request_id": call.client_request_id or None,
                    "method": "POST",
                    "path": PATHS.get(call.dialect, str(call.dialect)),
                    "model": call.model,
                    "stream": call.stream,
                    "key": key_name(call.authorization) or None,
                    "status": status,
                    "matched": call.note or _ordered(call.forward) or None,
                    "duration_ms": round(took_s * 1e3, 3),
                    "prompt_tokens": None if usage is None else usage.prompt,
                    "completion_tokens": None if usage is None else usage.completion,
                    "body": body,
                    "body_bytes": len(call.body),
                    "body_whole": whole,
                }
            )
        )


def _kept(body: bytes, most: int) -> tuple[Any, bool]:
    """A body as JSON, or its beginning as text."""
    if len(body) <= most:
        try:
            return orjson.loads(body), True
        except orjson.JSONDecodeError:
            return body.decode("utf-8", "replace"), True
    return body[:most].decode("utf-8", "replace"), False


def _ordered(lines: bytes) -> str:
    """The fault that a request ordered by header."""
    told = (line.partition(":") for line in lines.decode("latin-1").split("\r\n"))
    return "; ".join(f"{n}:{v}" for n, _, v in told if n.strip().lower() in _ORDERED)
