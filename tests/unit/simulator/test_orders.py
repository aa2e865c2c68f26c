"""Orders in headers: understood whole, or refused by name."""

from __future__ import annotations

import pytest

from tpo_mp.errors import InvalidRequest
from tpo_mp.simulator.orders import NOTHING, ErrorOrder, FaultOrder, Orders, lines_of, orders_of


@pytest.mark.parametrize(
    ("line", "error"),
    [
        ("429", ErrorOrder(429)),
        ("503; retry_after=5", ErrorOrder(503, 5.0)),
        ("insufficient_quota", ErrorOrder(429, None, "insufficient_quota")),
        ("daily_quota_exceeded", ErrorOrder(429, None, "daily_quota_exceeded")),
        (
            "monthly_quota_exceeded; retry_after=2592000",
            ErrorOrder(429, 2_592_000.0, "monthly_quota_exceeded"),
        ),
        ("500; first=2", ErrorOrder(500)),
        ("500; first=0", None),
    ],
)
def test_errors_are_read(line: str, error: ErrorOrder | None) -> None:
    """Status, wait, quota, and for how many tries."""
    assert orders_of(f"x-sim-error: {line}\r\n".encode()).error == error


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        ("disconnect", FaultOrder("disconnect")),
        ("disconnect_after=3", FaultOrder("disconnect", 3)),
        ("malformed", FaultOrder("malformed")),
        ("error_after = 2", FaultOrder("error", 2)),
        ("reset_after=4", FaultOrder("reset", 4)),
        ("refuse", FaultOrder("refuse")),
        ("slow", FaultOrder("slow", 0, 5.0)),
        ("hang; for=2", FaultOrder("hang", 0, 2.0)),
        ("trickle; bytes=3; every=0.01", FaultOrder("trickle", 0, None, 3, 0.01)),
        ("coalesce", FaultOrder("coalesce", 0, None, 8)),
        ("coalesce; events=3", FaultOrder("coalesce", 0, None, 3)),
        ("stall", FaultOrder("stall")),
        ("stall_after=1; for=0.5", FaultOrder("stall", 1, 0.5)),
    ],
)
def test_faults_are_read(line: str, fault: FaultOrder) -> None:
    """Kind, place and length."""
    assert orders_of(f"x-sim-fault: {line}\r\n".encode()).fault == fault


@pytest.mark.parametrize(
    "line",
    [
        "x-sim-error: 200", "x-sim-error: four", "x-sim-error: 429; later=1",
        "x-sim-error: 429; retry_after=-1", "x-sim-error: 429; retry_after=nan",
        "x-sim-fault: disconnect_after", "x-sim-fault: disconnect=3", "x-sim-fault: melt",
        "x-sim-fault: stall_after=x", "x-sim-fault: malformed; for=1",
        "x-sim-fault: stall; for=1e9", "x-sim-fault: refuse_after=3", "x-sim-fault: coalesce=3",
        "x-sim-fault: trickle; bytes=1e9", "x-sim-fault: malformed; for=", "x-sim-error: teapot",
    ],
)  # fmt: skip
def test_anything_else_is_refused(line: str) -> None:
    """With the header as the field at fault."""
    with pytest.raises(InvalidRequest) as refused:
        orders_of(f"{line}\r\n".encode())
    assert refused.value.param == line.partition(":")[0]


@pytest.mark.parametrize(
    ("error", "fault"),
    [
        ("connection_error", FaultOrder("refuse")),
        ("slow_response", FaultOrder("slow", 0, 5.0)),
        ("partial_response", FaultOrder("truncate")),
    ],
)
def test_errors_without_a_status_are_faults(error: str, fault: FaultOrder) -> None:
    """Nothing a status could say."""
    assert orders_of(f"x-sim-error: {error}\r\n".encode()) == Orders(fault=fault)


def test_requests_without_orders_have_none() -> None:
    """Other header lines do not matter."""
    assert orders_of(b"") is NOTHING
    assert orders_of(b"traceparent: 00-x\r\nx-stainless-retry-count: 1\r\n") is NOTHING
    assert orders_of(b"a: b\r\nx-sim-key: k\r\n") == Orders(key="k")


def test_lines_are_those_a_simulator_reads() -> None:
    """Of all headers only these, and none that is too long."""
    headers = {b"x-sim-key": b"k", b"cookie": b"c", b"x-stainless-retry-count": b"1"}
    assert lines_of(headers) == b"x-sim-key: k\r\nx-stainless-retry-count: 1\r\n"
    with pytest.raises(InvalidRequest, match="x-sim-error"):
        lines_of({b"x-sim-error": b"4" * 257})
