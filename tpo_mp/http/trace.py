"""W3C Trace Context: which of a client's trace headers go upstream.

They pass through unchanged: the gateway is no participant of the trace, so the caller's span is
the parent of the upstream's.  Nothing is echoed: the Recommendation defines ``traceparent`` for
requests only, and ``traceresponse`` is a draft.  ``baggage`` stays here: it may carry what the
caller's operator would not tell a provider.

Source: https://www.w3.org/TR/trace-context/ §3.2, §3.3, §4.3.
Invariants: an invalid ``traceparent`` is ignored together with its ``tracestate``; an invalid or
oversized ``tracestate`` is ignored alone.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

MAX_STATE_BYTES = 4096
MAX_STATE_MEMBERS = 32
_PARENT = re.compile(rb"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-[0-9a-f]{2}(-[!-~]*)?")
_MEMBER = re.compile(
    rb"(?:[a-z][a-z0-9_*/-]{0,255}|[a-z0-9][a-z0-9_*/-]{0,240}@[a-z][a-z0-9_*/-]{0,13})"
    rb"=[ -+\--<>-~]{0,255}[!-+\--<>-~]"
)


def trace_lines(headers: Mapping[bytes, bytes]) -> bytes:
    """The header lines that continue a client's trace; empty when there is none."""
    parent = headers.get(b"traceparent", b"")
    match = _PARENT.fullmatch(parent)
    if match is None or match[1] == b"ff" or (match[1] == b"00" and match[4]):
        return b""
    if not match[2].strip(b"0") or not match[3].strip(b"0"):
        return b""
    line = b"traceparent: %b\r\n" % parent
    state = headers.get(b"tracestate", b"")
    return line + b"tracestate: %b\r\n" % state if _is_state(state) else line


def _is_state(state: bytes) -> bool:
    if not state or len(state) > MAX_STATE_BYTES:
        return False
    # Empty members are allowed: proxies that join header lines make them.
    members = [m for m in (part.strip(b" \t") for part in state.split(b",")) if m]
    keys = {member.partition(b"=")[0] for member in members}
    return (
        0 < len(members) <= MAX_STATE_MEMBERS
        and len(keys) == len(members)
        and all(_MEMBER.fullmatch(member) for member in members)
    )
