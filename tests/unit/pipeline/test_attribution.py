"""Whose fault a failed try is: every error of the house, and every status of an upstream."""

from __future__ import annotations

import asyncio

import pytest

from tpo_mp.errors import (
    BackendFailure,
    BackendRefused,
    BackendTimeout,
    Cancelled,
    CircuitOpen,
    ConnectionCut,
    DeadlineExceeded,
    Draining,
    Fault,
    InvalidRequest,
    RateLimited,
    Shed,
    WorkerLost,
    from_wire,
)
from tpo_mp.http.response_head import ResponseHead
from tpo_mp.pipeline.answer import upstream_error
from tpo_mp.pipeline.attribution import Blame, blame, may_have_worked


@pytest.mark.parametrize(
    ("status", "retry_after", "whose"),
    [
        (400, None, "client"),
        (404, None, "client"),
        (413, None, "client"),
        (422, None, "client"),
        (401, None, "credential"),
        (403, None, "credential"),
        (429, None, "capacity"),
        (429, 2.0, "capacity"),
        (503, 2.0, "capacity"),
        (529, 2.0, "capacity"),
        (503, None, "backend"),
        (529, None, "backend"),
        (500, None, "backend"),
        (502, 2.0, "backend"),
        (504, None, "backend"),
        (408, None, "backend"),
        (301, None, "backend"),
    ],
)
def test_a_status_of_an_upstream_tells_whose_fault_it_is(
    status: int, retry_after: float | None, whose: str
) -> None:
    """Only what says that the backend itself failed is blamed on it; also across processes."""
    head = ResponseHead()
    head.status, head.retry_after = status, retry_after
    error = upstream_error(head, b"", client_key=False)
    assert blame(error) == whose
    assert blame(from_wire(error.to_wire())) == whose


@pytest.mark.parametrize("status", [401, 403, 429])
def test_what_an_upstream_says_to_the_callers_own_key_is_the_callers(status: int) -> None:
    """A caller whose key is refused or limited must not bench the backend of all others."""
    head = ResponseHead()
    head.status, head.retry_after = status, 60.0
    assert blame(upstream_error(head, b"", client_key=True)) is Blame.CLIENT


@pytest.mark.parametrize(
    ("error", "whose"),
    [
        (BackendRefused("x", reason="connect_refused"), "network"),
        (BackendRefused("x", reason="tls_failed"), "network"),
        (BackendTimeout("x", reason="connect_timeout"), "network"),
        (BackendFailure("x", reason="no_reply"), "network"),
        (BackendFailure("x", reason="cut_off"), "network"),
        (ConnectionCut("x"), "network"),
        (ConnectionResetError(), "network"),
        (BackendTimeout("x", reason="first_byte_timeout"), "backend"),
        (BackendTimeout("x", reason="idle_timeout"), "backend"),
        (BackendFailure("x", reason="bad_upstream_body"), "backend"),
        (BackendFailure("x", reason="truncated_stream"), "backend"),
        (BackendFailure("x", reason="upstream_error_event"), "backend"),
        (BackendFailure("x", reason="bad_tool_arguments"), "client"),
        (BackendFailure("x", reason="unfit_output"), "client"),
        (Shed("x", reason="backpressure"), "capacity"),
        (RateLimited("x"), "capacity"),
        (CircuitOpen("x"), "capacity"),
        (InvalidRequest("x"), "client"),
        (DeadlineExceeded("x"), "client"),
        (Cancelled("x"), "client"),
        (asyncio.CancelledError(), "client"),
        (Draining("x"), "client"),
        (Fault("x"), "client"),
        (RuntimeError("a defect"), "client"),
    ],
)
def test_an_error_tells_whose_fault_it_is(error: BaseException, whose: str) -> None:
    """By its reason first, then by its class."""
    assert blame(error) == whose


@pytest.mark.parametrize(
    ("error", "maybe"),
    [
        (None, True),
        (ConnectionError(), True),
        (BackendTimeout("x", reason="first_byte_timeout"), True),
        (BackendTimeout("x", reason="upstream_timeout"), True),
        (BackendTimeout("x", reason="connect_timeout"), False),
        (BackendRefused("x", reason="connect_refused"), False),
        (BackendFailure("x", reason="no_reply"), True),
        (BackendFailure("x", reason="cut_off"), True),
        (BackendFailure("x", reason="bad_upstream_body"), True),
        (BackendFailure("x", reason="upstream_error"), False),
        (BackendFailure("x", reason="upstream_overloaded", status=503), False),
        (ConnectionCut("x"), True),
        (CircuitOpen("x"), False),
        (RateLimited("x"), False),
        (Shed("x"), False),
        (InvalidRequest("x"), False),
        (Cancelled("x"), True),
        (WorkerLost("x"), True),
    ],
)
def test_only_who_was_not_reached_or_says_so_has_done_nothing(
    error: BaseException | None, maybe: bool
) -> None:
    """All others may have done the work; also across processes."""
    assert may_have_worked(error) is maybe
    if isinstance(error, BackendFailure):
        assert may_have_worked(from_wire(error.to_wire())) is maybe
