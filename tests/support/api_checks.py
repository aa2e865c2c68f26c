"""Checks for Schemathesis beyond its own; it loads this file through ``SCHEMATHESIS_HOOKS``."""

from __future__ import annotations

from typing import Any

import schemathesis
from schemathesis import Case, CheckContext, Response
from schemathesis.specs.openapi.checks import negative_data_rejection

STATED = (503, 504, 529)
"""What a busy host may answer: come back, or too late."""
LONGEST_WAIT_S = 300
"""What the API takes; shorter waits are made of the longer ones, so that the test ends."""


@schemathesis.check
def status_has_a_line_of_its_own(_: CheckContext, response: Response, case: Case) -> None:
    """The status is listed by number: the range for upstreams' refusals is not ours to use."""
    listed = case.operation.definition.raw["responses"]
    assert response.status_code == 405 or str(response.status_code) in listed, response.status_code


@schemathesis.check
def only_stated_server_errors(_: CheckContext, response: Response, case: Case) -> None:
    """No defect, whatever is sent."""
    status = response.status_code
    assert status < 500 or status in STATED, (status, response.text)


@schemathesis.check
def wrong_data_is_refused(ctx: CheckContext, response: Response, case: Case) -> None:
    """What breaks the schema is refused, but for headers and query that nobody reads."""
    data: Any = case.meta.phase.data if case.meta is not None else None
    said = str(getattr(data, "description", ""))
    if "unexpected properties" in said and str(data.parameter_location) != "body":
        return
    negative_data_rejection(ctx, response, case)


@schemathesis.hook
def map_case(_: Any, case: Case) -> Case:
    """Requests that would be waited for: a session's stream never ends, a wait lasts minutes."""
    if not isinstance(case.query, dict):
        return case
    if case.path.endswith("/stream/sse"):
        case.query.setdefault("prompt", "hello")
    wait: Any = case.query.get("wait")
    if isinstance(wait, int | float) and 1 < wait <= LONGEST_WAIT_S:
        case.query["wait"] = wait / LONGEST_WAIT_S
    return case
