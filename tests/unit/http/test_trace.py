"""W3C trace context: what is continued, what is ignored."""

from __future__ import annotations

import pytest

from tpo_mp.http.trace import trace_lines

PARENT = b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
LINE = b"traceparent: %b\r\n" % PARENT


@pytest.mark.parametrize(
    "parent",
    [
        PARENT,
        PARENT[:-2] + b"00",
        PARENT[:-2] + b"ff",
        b"cc" + PARENT[2:],
        b"cc" + PARENT[2:] + b"-what-the-future-brings",
    ],
)
def test_valid_parent_goes_on_unchanged(parent: bytes) -> None:
    """Any flags, and versions to come, whose first fields are ours."""
    assert trace_lines({b"traceparent": parent}) == b"traceparent: %b\r\n" % parent


@pytest.mark.parametrize(
    "parent",
    [
        b"",
        b"ff" + PARENT[2:],
        PARENT.upper(),
        PARENT[:-1],
        PARENT + b"-extra",
        PARENT + b"0",
        b"cc" + PARENT[2:] + b".extra",
        b"00-" + b"0" * 32 + PARENT[35:],
        PARENT[:36] + b"0" * 16 + b"-01",
        PARENT.replace(b"-", b"_"),
        PARENT + b", " + PARENT,
        b" " + PARENT,
        PARENT.replace(b"a", b"g"),
    ],
)
def test_invalid_parent_is_ignored_with_its_state(parent: bytes) -> None:
    """The trace starts anew behind us, as the Recommendation says."""
    assert trace_lines({b"traceparent": parent, b"tracestate": b"a=1"}) == b""


@pytest.mark.parametrize(
    "state",
    [
        b"rojo=00f067aa0ba902b7",
        b"rojo=1,congo=t61rcWkgMzE",
        b"rojo=1 , congo=2",
        b"rojo=1,,congo=2",
        b"tenant@system=a b",
        b"0tenant@system=1",
        b"a/b-c_d*=!x",
        b",".join(b"k%d=v" % i for i in range(32)),
    ],
)
def test_valid_state_follows_its_parent(state: bytes) -> None:
    """Unchanged, empty members included."""
    headers = {b"traceparent": PARENT, b"tracestate": state}
    assert trace_lines(headers) == LINE + b"tracestate: %b\r\n" % state


@pytest.mark.parametrize(
    "state",
    [
        b"",
        b",",
        b"noequals",
        b"Upper=1",
        b"0digit=1",
        b"a=",
        b"a=1=2",
        b"a=1,a=2",
        b"a=\x01",
        b"a=\xc3\xa9",
        b"a=" + b"x" * 257,
        b",".join(b"k%d=v" % i for i in range(33)),
        b",".join(b"k%d=" % i + b"v" * 200 for i in range(30)),
    ],
)
def test_invalid_state_is_dropped_alone(state: bytes) -> None:
    """The parent goes on without it."""
    assert trace_lines({b"traceparent": PARENT, b"tracestate": state}) == LINE


def test_state_alone_is_nothing() -> None:
    """It belongs to a parent."""
    assert trace_lines({b"tracestate": b"a=1"}) == b""
