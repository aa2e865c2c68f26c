"""Fuzzing of every request type from its own schema: answered, or refused by our own errors.

What fits is never refused as malformed; what does not fit is never taken; nothing is a defect.
"""

from __future__ import annotations

import json
from functools import cache
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.api import described, endpoints, validator
from tests.support.bad_input import name, path_of
from tests.support.effort import examples
from tests.support.fake_gateway import Surface
from tests.support.from_schema import ANY, fitting, spoiled
from tpo_mp import registry
from tpo_mp.errors import TpoError
from tpo_mp.http.endpoints import Endpoint

DOC = described()
BODIES = [e for e in endpoints() if e.request is not None]
NOT_OF_ONE_FIELD = (
    "unsupported_parameter", "unsupported_translation", "request_not_found", "store_unavailable",
    "rag_disabled",
)  # fmt: skip
"""Reasons that are about what a request asks for, not about its shape."""


class NoSeries:
    """The metrics of a host that counted nothing yet."""

    def collect(self) -> list[Any]:
        """No family."""
        return []


@cache
def served() -> dict[tuple[str, str], str]:
    """The surface of each route."""
    return {
        (e.method, e.template): feature
        for feature in registry.names("surfaces")
        for e in Surface(registry.find("surfaces", feature)).gateway.table
    }


def schema_of(endpoint: Endpoint) -> dict[str, Any]:
    """The schema of its body."""
    operation = DOC["paths"][endpoint.template][endpoint.method.lower()]
    found: dict[str, Any] = operation["requestBody"]["content"]["application/json"]["schema"]
    return found


def send(endpoint: Endpoint, body: bytes) -> TpoError | None:
    """Hand a body to the endpoint; the refusal, if any.  Anything else it raises is a defect."""
    feature = registry.find("surfaces", served()[endpoint.method, endpoint.template])
    surface = Surface(feature, metrics_arena=NoSeries())
    refusal = None
    try:
        exchange = surface.send(endpoint.method, path_of(endpoint), body)
    except TpoError as refused:
        refusal = refused
    if refusal is not None:
        assert 400 <= refusal.status < 500 or refusal.status == 503, refusal
        assert len(refusal.message) < 500
        return refusal
    for delivery in surface.gateway.submitted:
        json.loads(delivery.call.body)  # what goes upstream is JSON in UTF-8
        delivery.done(None, TpoError("nobody serves here"))
    for delivery in surface.gateway.accepted:
        if delivery.call.stream:  # the others have been told that they were accepted
            delivery.done(None, TpoError("nobody serves here"))
    assert exchange.status
    return None


def wire(value: Any) -> bytes:
    """JSON as most clients write it."""
    return json.dumps(value, ensure_ascii=False).encode("utf-8", "surrogatepass")


@pytest.mark.parametrize("endpoint", BODIES, ids=name)
@given(data=st.data())
@settings(max_examples=examples(60), deadline=None)
def test_what_fits_its_schema_is_taken(endpoint: Endpoint, data: st.DataObject) -> None:
    """Or refused for what it asks for, or by a rule between fields."""
    value = data.draw(fitting(DOC, schema_of(endpoint)))
    assert not validator(DOC, schema_of(endpoint)).errors(value)
    refusal = send(endpoint, wire(value))
    if refusal is not None:
        assert refusal.reason in NOT_OF_ONE_FIELD or refusal.param, refusal.message


@pytest.mark.parametrize("endpoint", BODIES, ids=name)
@given(data=st.data())
@settings(max_examples=examples(120), deadline=None)
def test_what_does_not_fit_is_refused(endpoint: Endpoint, data: st.DataObject) -> None:
    """One thing wrong somewhere in a good body; the schema is the judge."""
    value = data.draw(fitting(DOC, schema_of(endpoint)))
    value = spoiled(value, data.draw)
    wrong = validator(DOC, schema_of(endpoint)).errors(value)
    refusal = send(endpoint, wire(value))
    assert not wrong or refusal is not None, (wrong, value)


@pytest.mark.parametrize("endpoint", BODIES, ids=name)
@given(value=ANY, raw=st.binary(max_size=60), cut=st.integers(0, 400))
@settings(max_examples=examples(60), deadline=None)
def test_any_bytes_are_no_defect(endpoint: Endpoint, value: Any, raw: bytes, cut: int) -> None:
    """Any value, any bytes, any good body that ends too early."""
    send(endpoint, wire(value))
    send(endpoint, raw)
    whole = wire(endpoint.example)
    if cut < len(whole):
        assert send(endpoint, whole[:cut]) is not None
        send(endpoint, whole[:cut] + raw + whole[cut:])
