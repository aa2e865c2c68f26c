"""The audit's routes: filters by name, pages that are filled, an export that waits."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.support.fake_gateway import Surface
from tpo_mp.store.audit_questions import AUDIT, AUDIT_STATS, AuditQuery, Cursor
from tpo_mp.surfaces import audit_api
from tpo_mp.surfaces.audit_api import FEATURE


def told(*ids: int, following: str | None = None, **more: Any) -> tuple[bytes]:
    """A page as control tells it."""
    entries = [{"id": n} for n in ids]
    body = {"entries": entries, "count": len(ids), "next": following} | more
    return (json.dumps(body).encode(),)


@pytest.mark.parametrize(
    ("query", "param"),
    [
        ("limit=0", "limit"), ("limit=1001", "limit"), ("after=5", "after"),
        ("after=1-2-x", "after"), ("cache_hit=yes", "cache_hit"), ("min_latency_ms=-1",
        "min_latency_ms"), ("min_latency_ms=nan", "min_latency_ms"), ("status=99", "status"),
        ("terminal=dead", "terminal"), ("since=tomorrow", "since"), ("until=-1", "until"),
        ("until=2026-13-01T00:00:00Z", "until"), ("model=m", "model"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("route", ["/api/v1/audit", "/api/v1/audit/export"])
def test_a_bad_filter_is_refused_by_name(route: str, query: str, param: str) -> None:
    """A filter that is not understood must not let everything pass."""
    if route.endswith("export") and param in ("limit", "after"):
        return
    refused = Surface(FEATURE).refusal("GET", f"{route}?{query}")
    assert (refused.status, refused.param) == (400, param)


def test_filters_reach_the_store() -> None:
    """All of them, in its units."""
    wanted = AuditQuery(
        limit=3, after=Cursor(1, 2, 3), model="m", tenant="t", key_id="k", session="s",
        request="r", terminal="done", status=200, cache_hit=False, min_latency_s=0.25,
        since=1_769_860_800.0, until=1_769_860_801.5,
    )  # fmt: skip
    surface = Surface(FEATURE, stored={(AUDIT, wanted.key()): told(7)})
    target = (
        "/api/v1/audit?limit=3&after=1-2-3&model_id=m&tenant=t&key_id=k&session_id=s&request_id=r"
        "&terminal=done&status=200&cache_hit=false&min_latency_ms=250&since=2026-01-31T12:00:00Z"
        "&until=1769860801.5"
    )
    assert json.loads(surface.ask("GET", target).answer)["entries"] == [{"id": 7}]


def test_a_page_is_filled_from_several_answers() -> None:
    """Control looks at a bounded piece per question; its client need not know."""
    first, second = AuditQuery(limit=3), AuditQuery(limit=2, after=Cursor(9, 8, 7))
    third = AuditQuery(limit=2, after=Cursor(5, 0, 0))
    stored = {
        (AUDIT, first.key()): told(1, following="9-8-7", pending=4),
        (AUDIT, second.key()): told(following="5-0-0"),
        (AUDIT, third.key()): told(2, 3, following="4-0-0"),
    }
    page = json.loads(Surface(FEATURE, stored=stored).ask("GET", "/api/v1/audit?limit=3").answer)
    assert page == {"entries": [{"id": 1}, {"id": 2}, {"id": 3}], "count": 3, "next": "4-0-0",
                    "pending": 4}  # fmt: skip


def test_a_silent_store_is_a_503() -> None:
    """On every route."""
    for route in ("", "/stats", "/export"):
        assert Surface(FEATURE).refusal("GET", "/api/v1/audit" + route).status == 503


def test_sums_lose_their_mark() -> None:
    """``complete`` is between the worker and control."""
    stored = {(AUDIT_STATS, AuditQuery().key()): (b'{"total_entries":1,"complete":true}',)}
    answer = Surface(FEATURE, stored=stored).ask("GET", "/api/v1/audit/stats").answer
    assert json.loads(answer) == {"total_entries": 1}


def test_a_page_of_much_text_is_not_filled(monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker holds a few such answers at most; the client goes on with ``next``."""
    monkeypatch.setattr(audit_api, "MOST_BYTES", 50)
    stored = {(AUDIT, AuditQuery(limit=3).key()): told(1, following="9-8-7")}
    page = json.loads(Surface(FEATURE, stored=stored).ask("GET", "/api/v1/audit?limit=3").answer)
    assert page == {"entries": [{"id": 1}], "count": 1, "next": "9-8-7"}
