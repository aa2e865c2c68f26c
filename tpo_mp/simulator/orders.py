"""What a request's ``X-Sim-…`` headers order: an error instead of the answer, a fault within it.

::

    X-Sim-Error: 429                     the provider's own body for that status
    X-Sim-Error: rate_limit_tpm          an error by name, see ``error_kinds``
    X-Sim-Error: insufficient_quota      a 429 that waiting does not end
    X-Sim-Error: 503; retry_after=5      with that many seconds in retry-after
    X-Sim-Error: 429; first=2            only a client's first two tries, by x-stainless-retry-count
    X-Sim-Fault: disconnect_after=3      the connection is closed after three tokens
    X-Sim-Fault: malformed               the next event, or half a whole body, is no JSON
    X-Sim-Fault: stall_after=3; for=0.5  silence after three tokens, for half a second
    X-Sim-Key: anything                  draws numbers by this word instead of by the body

Every kind of fault, and what it takes, is in ``FAULTS``.  Rules of a configuration name errors and
faults in the same words.

Invariants: an order that is not understood is ``InvalidRequest`` naming its header, never ignored.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final, Literal, NamedTuple, TypeAlias, cast

from tpo_mp.config.problems import suggestion
from tpo_mp.errors import InvalidRequest

from .error_kinds import AS_FAULTS, KINDS, QUOTA

ERROR: Final = "x-sim-error"
FAULT: Final = "x-sim-fault"
KEY: Final = "x-sim-key"
TRIES: Final = "x-stainless-retry-count"
"""How often an SDK has tried before; all made by Stainless send it."""
STEER: Final = (b"x-sim-error", b"x-sim-fault", b"x-sim-key")
"""Request headers that steer a simulator, as they come off the wire."""
MOST_BYTES: Final = 256

FaultKind: TypeAlias = Literal[
    "refuse", "disconnect", "reset", "hang", "slow", "stall", "truncate", "malformed", "error",
    "duplicate", "empty", "trickle", "split", "coalesce", "wrong_usage",
]  # fmt: skip


class _Takes(NamedTuple):
    """Whether a fault may come after some tokens, and which options it has."""

    after: bool
    options: tuple[str, ...] = ()


FAULTS: Final[dict[str, _Takes]] = {
    "refuse": _Takes(False),  # reset before a byte, as a closed port does
    "disconnect": _Takes(True),  # closed in good order (FIN)
    "reset": _Takes(True),  # closed with a reset (RST)
    "hang": _Takes(False, ("for",)),  # silence before the first byte
    "slow": _Takes(False, ("for",)),  # the answer, so much later
    "stall": _Takes(True, ("for",)),  # silence in the middle
    "truncate": _Takes(True),  # ends in good order, without its last events
    "malformed": _Takes(True),
    "error": _Takes(True),
    "duplicate": _Takes(True),
    "empty": _Takes(True),
    "trickle": _Takes(False, ("bytes", "every")),
    "split": _Takes(False),
    "coalesce": _Takes(False, ("events",)),
    "wrong_usage": _Takes(False),
}
MOST_TOKENS: Final = 1_000_000
MOST_SECONDS: Final = 3600.0
MOST_WAIT_S: Final = 31_536_000.0
STALL_S: Final = 600.0
"""How long a stall lasts that does not say; then the connection is cut."""
SLOW_S: Final = 5.0
"""How late a slow answer is that does not say."""
TRICKLE_BYTES: Final = 16
TRICKLE_S: Final = 0.05
COALESCE: Final = 8
_STATUSES: Final = (400, 401, 403, 404, 408, 409, 413, 422, 429, 500, 502, 503, 504, 529)
_MOST: Final[dict[str, float]] = {
    "retry_after": MOST_WAIT_S, "bytes": 65_536, "events": 4_096, "every": 60.0,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class ErrorOrder:
    """A refusal with this status, or the named one (see ``error_kinds.KINDS``).

    ``tokens`` are those of the prompt, where its message names them.
    """

    status: int
    retry_after_s: float | None = None
    name: str = ""
    tokens: int = 0

    @property
    def quota(self) -> bool:
        """Whether waiting is no use."""
        return self.name == QUOTA


@dataclass(frozen=True, slots=True)
class FaultOrder:
    """A fault after so many tokens.

    ``lasts_s`` is that of a silence or a wait (None: until it is cut), ``size`` the bytes of a
    trickle's writes or the events of a coalesced one, ``every_s`` the pause between the former.
    """

    kind: FaultKind
    after: int = 0
    lasts_s: float | None = None
    size: int = 0
    every_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Orders:
    """What one request ordered; ``delay_s`` comes before anything else, ``rule`` chose it."""

    error: ErrorOrder | None = None
    fault: FaultOrder | None = None
    key: str = ""
    delay_s: float = 0.0
    rule: str = ""
    drawn: bytes = b""
    """The key of its random numbers, where somebody needed it already."""


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


def carried_lines(headers: Mapping[bytes, bytes], names: Iterable[bytes]) -> bytes:
    """The lines of headers that rules ask about; of a long value, its beginning."""
    lines = b""
    for name in names:
        value = headers.get(name)
        if value is not None:
            lines += b"%b: %b\r\n" % (name, value[:MOST_BYTES])
    return lines


def orders_of(lines: bytes) -> Orders:
    """Read header lines, each ending in CRLF; raises ``InvalidRequest`` naming a bad header."""
    if b"x-sim-" not in lines:
        return NOTHING
    headers = {}
    for line in lines.decode("latin-1").split("\r\n"):
        name, _, value = line.partition(":")
        headers[name.strip().lower()] = value.strip()
    error, fault = headers.get(ERROR), headers.get(FAULT)
    ordered = fault_of(fault, FAULT) if fault else None
    refused = None
    if error:
        what = error_of(error, ERROR)
        if isinstance(what.order, FaultOrder):
            ordered = what.order
        elif what.first is None or tries_of(headers.get(TRIES, "")) < what.first:
            refused = what.order
    return Orders(refused, ordered, headers.get(KEY, ""))


class ErrorWords(NamedTuple):
    """An error as it was written, and for how many tries of a client (None: for all)."""

    order: ErrorOrder | FaultOrder
    first: int | None


def tries_of(text: str) -> int:
    """How often an SDK says that it has tried before."""
    return int(text) if text.isdecimal() and len(text) < 6 else 0


def error_of(value: str, where: str) -> ErrorWords:
    """Read ``429; retry_after=5; first=2``; raises ``InvalidRequest`` about ``where``."""
    what, options = _split(where, value, ("first", "retry_after"))
    first = None if "first" not in options else int(options["first"])
    if what in AS_FAULTS:
        return ErrorWords(fault_of(AS_FAULTS[what], where), first)
    wait = options.get("retry_after")
    kind = KINDS.get(what)
    if kind is not None:
        return ErrorWords(ErrorOrder(kind.status, wait, what), first)
    status = int(what) if what.isdecimal() and len(what) == 3 else 0
    if status not in _STATUSES:
        known = [*map(str, _STATUSES), *KINDS, *AS_FAULTS]
        raise _wrong(where, f"{what[:32]!r} is no error; {suggestion(what[:32], known)}")
    return ErrorWords(ErrorOrder(status, wait), first)


def fault_of(value: str, where: str) -> FaultOrder:
    """Read ``stall_after=3; for=0.5``; raises ``InvalidRequest`` about ``where``."""
    name, _, number = (part.strip() for part in value.partition(";")[0].partition("="))
    kind = name.removesuffix("_after")
    takes = FAULTS.get(kind)
    counted = name.endswith("_after")
    if takes is None or (number != "") != counted or (counted and not takes.after):
        known = [f"{k}_after=N" for k, t in FAULTS.items() if t.after]
        said = suggestion(value[:32], [*FAULTS, *known])
        raise _wrong(where, f"{value[:32]!r} is no fault; {said}")
    _, options = _split(where, value, takes.options)
    after = int(_number(where, number, MOST_TOKENS)) if number else 0
    lasts, size, every = options.get("for"), 0, 0.0
    if kind == "slow" and lasts is None:
        lasts = SLOW_S
    elif kind == "trickle":
        size = max(int(options.get("bytes", TRICKLE_BYTES)), 1)
        every = options.get("every", TRICKLE_S)
    elif kind == "coalesce":
        size = max(int(options.get("events", COALESCE)), 1)
    return FaultOrder(cast("FaultKind", kind), after, lasts, size, every)  # it is one of FAULTS


def read_error(value: str) -> ErrorOrder:
    """Read what ``X-Sim-Error`` says, for whoever orders without a header."""
    _split(ERROR, value, ("retry_after",))
    order = error_of(value, ERROR).order
    if isinstance(order, FaultOrder):
        raise _wrong(ERROR, f"{value[:32]!r} has no status; it is the fault {order.kind!r}")
    return order


def read_fault(value: str) -> FaultOrder:
    """Read what ``X-Sim-Fault`` says."""
    return fault_of(value, FAULT)


def _split(where: str, value: str, known: tuple[str, ...]) -> tuple[str, dict[str, float]]:
    """The order itself, and its options by name."""
    what, *rest = (part.strip() for part in value.split(";"))
    options = {}
    for part in rest:
        name, _, number = (word.strip() for word in part.partition("="))
        if name not in known:
            takes = f"none of its options: {', '.join(known)}" if known else "no option of it"
            raise _wrong(where, f"{name[:32]!r} is {takes}")
        options[name] = _number(where, number, _MOST.get(name, MOST_SECONDS))
    return what, options


def _number(where: str, text: str, most: float) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not 0 <= number <= most:
        raise _wrong(where, f"{text[:32]!r} is no number from 0 to {most:g}")
    return number


def _wrong(where: str, said: str) -> InvalidRequest:
    return InvalidRequest(f"{where}: {said}", reason="invalid_header", param=where)
