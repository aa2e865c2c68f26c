"""Finished calls over HTTP: pages, sums, and an export as JSON lines.

What a worker cannot know alone it asks control for, so every worker answers alike.

Invariants: filters are all of them or nothing; a page is found within ``LOOK_S``, and says where to
go on when that was not enough; a page that is longer than ``MOST_BYTES`` for its texts ends early;
an export is made page by page as its client reads.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from time import monotonic
from typing import Annotated, Any, Final, Literal

import msgspec
import orjson
from msgspec import Meta, Struct, structs

from tpo_mp.dialects.audit_shapes import AuditPage, AuditStats
from tpo_mp.errors import InvalidRequest, Shed
from tpo_mp.http import query as given
from tpo_mp.http.endpoints import Endpoint, Outcome, Parameter
from tpo_mp.http.exchange import Exchange, id_line
from tpo_mp.pipeline.gate import Gate
from tpo_mp.pipeline.gateway import Gateway
from tpo_mp.ports import Env, Feature
from tpo_mp.store.audit_questions import ASK_S, AUDIT, AUDIT_STATS, MAX_PAGE, AuditQuery, Cursor
from tpo_mp.types import Terminal

NDJSON: Final = "application/x-ndjson"
LOOK_S: Final = 1.0
SUM_S: Final = 10.0
EXPORT_PAGE: Final = 500
MOST_BYTES: Final = 4 << 20
_MOST_MS: Final = 1e9
_MOST_AT: Final = 1e11

_INSTANT = "in epoch seconds or as 2026-01-31T12:00:00Z."
_PERIOD = (
    Parameter("model_id", "Only calls of this model."),
    Parameter("tenant", "Only this tenant's calls."),
    Parameter("since", f"Only calls that ended then or later, {_INSTANT}"),
    Parameter("until", f"Only calls that ended before, {_INSTANT}"),
)
_FILTERS = (
    *_PERIOD,
    Parameter("cache_hit", "Only calls that a cache answered, or did not.",
              Literal["true", "false"]),
    Parameter("min_latency_ms", "Only calls that took at least so long.",
              Annotated[float, Meta(ge=0, le=_MOST_MS)]),
    Parameter("key_id", "Only calls with this key."),
    Parameter("session_id", "Only calls of this session."),
    Parameter("request_id", "Only the call with this id, ours or the client's."),
    Parameter("tag", "Only calls with this tag."),
    Parameter("status", "Only calls answered so.", Annotated[int, Meta(ge=100, le=599)]),
    Parameter("terminal", "Only calls that ended so.",
              Literal["done", "failed", "shed", "expired", "cancelled", "crashed"]),
)  # fmt: skip
_PAGE = (
    *_FILTERS,
    Parameter("limit", "Most entries of a page; 100 unless given.",
              Annotated[int, Meta(ge=1, le=MAX_PAGE)]),
    Parameter("after", "The `next` of the page before."),
)  # fmt: skip


class Config(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """No options."""


class _Page(Struct):
    entries: list[msgspec.Raw]
    next: str | None
    pending: int = 0


class _Complete(Struct):
    complete: bool


_page = msgspec.json.Decoder(_Page).decode
_complete = msgspec.json.Decoder(_Complete).decode


class AuditApi:
    """Routes under ``/api/v1/audit``."""

    def __init__(self, config: Config, env: Env) -> None:
        self._gateway: Gateway

    def endpoints(self, gateway: Gateway) -> list[Endpoint]:
        """The routes of this surface."""
        self._gateway = gateway
        return [
            Endpoint("GET", "/api/v1/audit", self.page, "native", access="admin", parameters=_PAGE,
                     outcomes=(Outcome("one page", AuditPage),)),
            Endpoint("GET", "/api/v1/audit/stats", self.stats, "native", access="admin",
                     parameters=_PERIOD, outcomes=(Outcome("the sums", AuditStats),)),
            Endpoint("GET", "/api/v1/audit/export", self.export, "native", access="admin",
                     parameters=_FILTERS,
                     outcomes=(Outcome("a JSON line per call, newest first", media=NDJSON),)),
        ]  # fmt: skip

    async def page(self, exchange: Exchange) -> None:
        """List finished calls, newest first."""
        query = given.parameters(exchange.head)
        limit = given.whole(query, "limit", 100, least=1, most=MAX_PAGE)
        wanted = structs.replace(_filters(query), limit=limit, after=_cursor(query))
        found = await self._look(wanted, limit)
        body: dict[str, Any] = {"entries": found.entries, "count": len(found.entries)}
        if found.pending:
            body["pending"] = found.pending
        told = msgspec.json.encode(body | {"next": found.next})
        exchange.respond(200, told, extra=id_line(exchange.head))

    async def stats(self, exchange: Exchange) -> None:
        """Sum finished calls up: how many, how fast, tokens, cost, and each of it by model."""
        key = _filters(given.parameters(exchange.head), _PERIOD).key()
        until = monotonic() + SUM_S
        while True:
            told = await self._ask(AUDIT_STATS, key)
            if _complete(told).complete:
                break
            if monotonic() >= until:
                said = "the records are still being summed up; ask again"
                raise Shed(said, reason="audit_summing", retry_after_s=1)
        body = orjson.loads(told)
        del body["complete"]
        exchange.respond(200, orjson.dumps(body), extra=id_line(exchange.head))

    async def export(self, exchange: Exchange) -> None:
        """Stream finished calls as JSON lines, newest first."""
        wanted = structs.replace(_filters(given.parameters(exchange.head)), limit=EXPORT_PAGE)
        page = await self._look(wanted, EXPORT_PAGE)
        gate = Gate()
        exchange.on_disconnect = gate.cancel
        named = b'content-disposition: attachment; filename="audit.ndjson"\r\n'
        exchange.begin(200, NDJSON.encode(), id_line(exchange.head) + named, gate)
        while True:
            if page.entries:
                exchange.write(b"".join(b"%b\n" % bytes(entry) for entry in page.entries))
            if page.next is None:
                exchange.finish()
                return
            wanted = structs.replace(wanted, after=Cursor.read(page.next))
            try:
                if not await gate.passed():
                    return
                page = await self._look(wanted, EXPORT_PAGE)
            except Shed:
                exchange.abort()  # the head is gone: a body that ends early is all that is left
                return

    # -- inside ---------------------------------------------------------------------------------

    async def _look(self, wanted: AuditQuery, limit: int) -> _Page:
        """Ask for pages until one is full, the log is at its end, or the time is over."""
        until = monotonic() + LOOK_S
        told = await self._ask(AUDIT, wanted.key())
        found, size = _page(told), len(told)
        while (
            found.next is not None
            and len(found.entries) < limit
            and size < MOST_BYTES
            and monotonic() < until
        ):
            left = limit - len(found.entries)
            wanted = structs.replace(wanted, limit=left, after=Cursor.read(found.next))
            told = await self._ask(AUDIT, wanted.key())
            more, size = _page(told), size + len(told)
            found = _Page(found.entries + more.entries, more.next, found.pending)
        return found

    async def _ask(self, table: str, key: str) -> bytes:
        answer = await self._gateway.ask_store(table, key, ASK_S)
        if answer is None or answer[0] is None:
            raise Shed("the store does not answer", reason="store_unavailable", retry_after_s=1)
        return answer[0]


def _filters(query: Mapping[str, str], known: tuple[Parameter, ...] = _PAGE) -> AuditQuery:
    """What a query asks for; raises ``InvalidRequest``, also for a filter there is not."""
    unknown = sorted(query.keys() - {parameter.name for parameter in known})
    if unknown:
        raise InvalidRequest(f"{unknown[0][:64]!r} is no filter here", param=unknown[0][:64])
    hit = given.choice(query, "cache_hit", ("true", "false"))
    least = given.number(query, "min_latency_ms", 0.0, _MOST_MS)
    return AuditQuery(
        model=query.get("model_id"),
        tenant=query.get("tenant"),
        key_id=query.get("key_id"),
        session=query.get("session_id"),
        request=query.get("request_id"),
        tag=query.get("tag"),
        terminal=given.choice(query, "terminal", [end.value for end in Terminal]),
        status=given.whole(query, "status", 0, least=100, most=599) if "status" in query else None,
        cache_hit=None if hit is None else hit == "true",
        min_latency_s=least / 1e3 if "min_latency_ms" in query else None,
        since=_instant(query, "since"),
        until=_instant(query, "until"),
    )


def _cursor(query: Mapping[str, str]) -> Cursor | None:
    text = query.get("after")
    if text is None:
        return None
    cursor = Cursor.read(text)
    if cursor is None:
        raise InvalidRequest("after must be the next of a page before", param="after")
    return cursor


def _instant(query: Mapping[str, str], name: str) -> float | None:
    text = query.get(name)
    if text is None:
        return None
    try:
        if "T" in text:
            read = datetime.fromisoformat(text)
            at = (read if read.tzinfo else read.replace(tzinfo=UTC)).timestamp()
        else:
            at = float(text)
    except (ValueError, OverflowError):
        at = -1.0
    if not 0 <= at <= _MOST_AT:
        raise InvalidRequest(f"{name} must be an instant {_INSTANT[:-1]}", param=name)
    return at


FEATURE = Feature(Config, AuditApi)
