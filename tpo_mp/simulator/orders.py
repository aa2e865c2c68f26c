"""What a request's ``X-Sim-…`` headers order: an error instead of the answer, a fault within it.

::

    X-Sim-Error: 429                     the provider's own body for that status
    X-Sim-Error: insufficient_quota      a 429 that waiting does not end
    X-Sim-Error: 503; retry_after=5      with that many seconds in retry-after
    X-Sim-Error: 429; first=2            only a client's first two tries, by x-stainless-retry-count
    X-Sim-Fault: disconnect_after=3      the connection is cut after three tokens
    X-Sim-Fault: malformed               the next event, or half a whole body, is no JSON
    X-Sim-Fault: malformed_after=3       the same, after three tokens
    X-Sim-Fault: error_after=3           the dialect's error event after three tokens
    X-Sim-Fault: stall                   silence before the first byte
    X-Sim-Fault: stall_after=3; for=0.5  silence after three tokens, for half a second
    X-Sim-Key: anything                  draws numbers by this word instead of by the body

Invariants: an order that is not understood is ``InvalidRequest`` naming its header, never ignored.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias, cast

from tpo_mp.errors import InvalidRequest

ERROR: Final = "x-sim-error"
FAULT: Final = "x-sim-fault"
KEY: Final = "x-sim-key"
TRIES: Final = "x-stainless-retry-count"
"""How often an SDK has tried before; all made by Stainless send it."""
STEER: Final = (b"x-sim-error", b"x-sim-fault", b"x-sim-key")
"""Request headers that steer a simulator, as they come off the wire."""
MOST_BYTES: Final = 256

FaultKind: TypeAlias = Literal["disconnect", "malformed", "error", "stall"]
_KINDS: Final = ("disconnect", "malformed", "error", "stall")
MOST_TOKENS: Final = 1_000_000
MOST_SECONDS: Final = 3600.0
STALL_S: Final = 600.0
"""How long a stall lasts that does not say; then the connection is cut."""
QUOTA: Final = "insufficient_quota"
_STATUSES: Final = (400, 401, 403, 404, 408, 409, 413, 422, 429, 500, 502, 503, 504, 529)


@dataclass(frozen=True, slots=True)
class ErrorOrder:
    """A refusal with this status; ``quota``: the one of an empty account."""

    status: int
    retry_after_s: float | None = None
    quota: bool = False


@dataclass(frozen=True, slots=True)
class FaultOrder:
    """A fault after so many tokens; ``lasts_s`` of a stall, None: until it is cut."""

    kind: FaultKind
    after: int = 0
    lasts_s: float | None = None


@dataclass(frozen=True, slots=True)
class Orders:
    """What one request ordered."""

    error: ErrorOrder | None = None
    fault: FaultOrder | None = None
    key: str = ""


NOTHING: Final = Orders()


def lines_of(headers: Mapping[bytes, bytes]) -> bytes:
    """The header lines of a request that a simulator must see; raises ``InvalidRequest``."""
    lines = b""
    for name in (*STEER, TRIES.encode()):
        value = headers.get(name)
        if value is None:
            continue
        if len(value) > MOST_BYTES:
            raise _wrong(name.decode(), f"longer than {MOST_BYTES} bytes")
        lines += b"%b: %b\r\n" % (name, value)
    return lines


def orders_of(lines: bytes) -> Orders:
    """Read header lines, each ending in CRLF; raises ``InvalidRequest`` naming a bad header."""
    if b"x-sim-" not in lines:
        return NOTHING
    headers = {}
    for line in lines.decode("latin-1").split("\r\n"):
        name, _, value = line.partition(":")
        headers[name.strip().lower()] = value.strip()
    error = headers.get(ERROR)
    fault = headers.get(FAULT)
    return Orders(
        _error(error, headers.get(TRIES, "")) if error else None,
        _fault(fault) if fault else None,
        headers.get(KEY, ""),
    )


def read_error(value: str) -> ErrorOrder:
    """Read what ``X-Sim-Error`` says, for whoever orders without a header."""
    what, _ = _split(ERROR, value, ("retry_after",))
    found = _error(value, "")
    assert found is not None, what
    return found


def read_fault(value: str) -> FaultOrder:
    """Read what ``X-Sim-Fault`` says."""
    return _fault(value)


def _error(value: str, tries: str) -> ErrorOrder | None:
    what, options = _split(ERROR, value, ("first", "retry_after"))
    quota = what == QUOTA
    status = 429 if quota else int(what) if what.isdecimal() and len(what) == 3 else 0
    if status not in _STATUSES:
        known = ", ".join(map(str, _STATUSES))
        raise _wrong(ERROR, f"{what[:32]!r} is neither {QUOTA} nor one of {known}")
    first = options.get("first")
    tried = int(tries) if tries.isdecimal() and len(tries) < 6 else 0
    if first is not None and tried >= first:
        return None
    return ErrorOrder(status, options.get("retry_after"), quota)


def _fault(value: str) -> FaultOrder:
    what, options = _split(FAULT, value, ("for",))
    name, _, number = (part.strip() for part in what.partition("="))
    kind = name.removesuffix("_after")
    if kind not in _KINDS or (number != "") != name.endswith("_after"):
        known = ", ".join(f"{k}, {k}_after=N" for k in _KINDS)
        raise _wrong(FAULT, f"{what[:32]!r} is none of {known}")
    after = int(_number(FAULT, number, MOST_TOKENS)) if number else 0
    lasts = options.get("for")
    if lasts is not None and kind != "stall":
        raise _wrong(FAULT, "only a stall takes for=SECONDS")
    return FaultOrder(cast("FaultKind", kind), after, lasts)  # it is one of _KINDS


def _split(header: str, value: str, known: tuple[str, ...]) -> tuple[str, dict[str, float]]:
    """The order itself, and its options by name."""
    what, *rest = (part.strip() for part in value.split(";"))
    options = {}
    for part in rest:
        name, _, number = (word.strip() for word in part.partition("="))
        if name not in known:
            raise _wrong(header, f"{name[:32]!r} is none of its options: {', '.join(known)}")
        options[name] = _number(header, number, MOST_SECONDS)
    return what, options


def _number(header: str, text: str, most: float) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not 0 <= number <= most:
        raise _wrong(header, f"{text[:32]!r} is no number from 0 to {most:g}")
    return number


def _wrong(header: str, said: str) -> InvalidRequest:
    return InvalidRequest(f"{header}: {said}", reason="invalid_header", param=header)
