"""Results by session and state, and calls ended by their id."""

from __future__ import annotations

import json

import pytest

from tests.support.fake_gateway import Surface
from tpo_mp.errors import Shed
from tpo_mp.shm.callid import CallIds
from tpo_mp.store.questions import RESULTS, RecordQuery
from tpo_mp.surfaces.results_api import FEATURE

PAGE = b'{"results":[],"count":0,"next":null}'


@pytest.mark.parametrize(
    ("query", "asked"),
    [
        ("", RecordQuery()),
        ("?limit=200&after=7", RecordQuery(200, 7)),
        ("?session_id=s%201&filter=error", RecordQuery(20, None, "s 1", "failed")),
        ("?filter=pending", RecordQuery(state="processing")),
    ],
)
def test_questions_reach_the_store_as_asked(query: str, asked: RecordQuery) -> None:
    """Words of the query become the store's; the page is sent on as it is."""
    surface = Surface(FEATURE, stored={(RESULTS, asked.key()): (PAGE,)})
    exchange = surface.ask("GET", "/api/v1/results" + query)
    assert (exchange.status, exchange.answer) == (200, PAGE)


@pytest.mark.parametrize(
    ("query", "name"), [("limit=0", "limit"), ("limit=201", "limit"), ("filter=done", "filter")]
)
def test_questions_that_cannot_be_are_refused(query: str, name: str) -> None:
    """With the parameter's name."""
    assert Surface(FEATURE).refusal("GET", f"/api/v1/results?{query}").param == name


def test_silent_store_is_not_an_empty_list() -> None:
    """Nobody knows whether there are results."""
    assert isinstance(Surface(FEATURE).refusal("GET", "/api/v1/results"), Shed)


@pytest.mark.parametrize("path", ["/api/v1/requests/", "/v1/requests/"])
@pytest.mark.parametrize(
    ("status", "code"), [("cancelled", 200), ("completed", 409), ("failed", 409),
                         ("processing", 503)],
)  # fmt: skip
def test_cancel_answers_by_how_the_call_stands(path: str, status: str, code: int) -> None:
    """Ended now or before, finished already, or on its way between two workers."""
    call_id = CallIds(0, 1).new()
    record = json.dumps({"request_id": call_id, "status": status}).encode()
    surface = Surface(FEATURE, results={call_id: record})
    if code == 200:
        exchange = surface.ask("DELETE", path + call_id)
        assert (exchange.status, exchange.answer) == (200, record)
    else:
        assert surface.refusal("DELETE", path + call_id).status == code
    assert surface.gateway.cancelled == [call_id]


def test_cancel_of_what_nobody_knows_is_404() -> None:
    """Ids of ours that lead nowhere, and words that are no ids."""
    surface = Surface(FEATURE)
    for call_id in (CallIds(0, 1).new(), "nonsense"):
        refused = surface.refusal("DELETE", "/api/v1/requests/" + call_id)
        assert (refused.status, refused.reason) == (404, "request_not_found")
