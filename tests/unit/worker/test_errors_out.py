"""Errors outside a call: in the shape of the route's family."""

from __future__ import annotations

import pytest

from tests.support.fake_gateway import FakeExchange
from tpo_mp.errors import InvalidRequest, NotFound, RateLimited, Shed
from tpo_mp.http.endpoints import Endpoint
from tpo_mp.http.head import Head
from tpo_mp.shm.metrics import MetricsArena
from tpo_mp.worker.errors_out import Refusals, render_error


def exchange(path: str, family: str = "", request_id: str = "") -> FakeExchange:
    """A request to a path, with or without a route."""
    head = Head()
    head.path, head.request_id = path, request_id
    if family:
        head.endpoint = Endpoint("GET", path, lambda _exchange: None, family)  # type: ignore[arg-type]
    return FakeExchange(head)


@pytest.mark.parametrize(
    ("path", "family", "native"),
    [
        ("/v1/chat/completions", "openai", False),
        ("/v1/prompt", "native", True),
        ("/metrics", "ops", False),
        ("/api/v1/nowhere", "", True),
        ("/nowhere", "", False),
        ("/v1/nowhere", "", False),
    ],
)
def test_body_has_the_familys_shape(path: str, family: str, native: bool) -> None:
    """Also where there is no route, by the path's beginning."""
    asked = exchange(path, family, "r-1")
    render_error(asked, NotFound("no", reason="gone", param="id"))
    error = asked.json()["error"]
    assert (asked.status, error["code"], error["param"]) == (404, "gone", "id")
    assert ("request_id" in error) is native
    assert b"x-request-id: r-1\r\n" in asked.extra


def test_anthropics_sdk_is_answered_in_its_own_shape_where_both_ask() -> None:
    """Both families list models at one path; only one names its version."""
    asked = exchange("/v1/models/x", "openai", "r-1")
    asked.head.headers = {b"anthropic-version": b"2023-06-01"}
    render_error(asked, NotFound("no", reason="gone", param="id"))
    said = asked.json()
    assert (said["type"], said["error"]["type"]) == ("error", "not_found_error")
    assert b"request-id: r-1\r\n" in asked.extra


def test_path_with_another_method_has_its_familys_shape() -> None:
    """A method that is not allowed is refused in the words of those that are."""
    asked = exchange("/v1/prompt")
    asked.head.family = "native"
    render_error(asked, NotFound("no", reason="gone"))
    assert "request_id" in asked.json()["error"]


def test_clients_are_told_when_to_come_back() -> None:
    """As in a call."""
    asked = exchange("/v1/x", "openai")
    render_error(asked, RateLimited("slow", retry_after_s=3))
    assert b"retry-after: 3\r\n" in asked.extra


def test_method_not_allowed_says_which_are() -> None:
    """The standard wants the header."""
    asked = exchange("/v1/x")
    render_error(
        asked,
        InvalidRequest("method PUT is not allowed here; use GET, POST",
                       reason="method_not_allowed", status=405),
    )  # fmt: skip
    assert b"allow: GET, POST\r\n" in asked.extra


def test_refusals_are_counted_by_status_and_reason() -> None:
    """Shed ones also where operators look for them."""
    arena = MetricsArena.create(1)
    refusals = Refusals(arena.block(0, 1))
    for error in (NotFound("no", reason="gone"), NotFound("no", reason="gone"), Shed("full")):
        asked = exchange("/v1/x")
        refusals.answer(asked, error)
        assert asked.status == error.status
    seen = {
        (family.name, dict(sample.labels).get("reason") or dict(sample.labels).get("stage")):
        sample.value
        for family in arena.collect()
        for sample in family.samples
    }  # fmt: skip
    assert seen["tpo_refused_requests_total", "gone"] == 2
    assert seen["tpo_refused_requests_total", "shed"] == 1
    assert seen["orchestrator_requests_shed_total", "admit"] == 1
    arena.close()
