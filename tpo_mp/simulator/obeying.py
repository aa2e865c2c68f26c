"""What happens before a byte is sent: waiting, refusing, breaking the connection.

Faults that come later are in ``fault_frames`` (what is said), ``slow_writes`` (how it is written)
and ``source`` (silence in the middle).

Invariants: whatever was ordered, the call ends: a silence without an end is cut after ``STALL_S``,
an answer that would come later than a request may take is a 504 by then.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Final, NamedTuple

from tpo_mp.errors import ConnectionCut, TpoError

from .fault_frames import cut
from .orders import NOTHING, STALL_S, ErrorOrder, Orders

TOO_LATE: Final = ErrorOrder(504, name="upstream_timeout")
"""What an answer becomes that would take longer than a request may."""


class Beginning(NamedTuple):
    """A wait, then the end of it all or what is left to obey while answering."""

    wait_s: float
    end: TpoError | None
    left: Orders


def beginning(orders: Orders, *, streamed: bool) -> Beginning:
    """What of the orders comes before the answer."""
    wait_s, error, fault = orders.delay_s, orders.error, orders.fault
    end: TpoError | None = None
    if fault is not None and not (streamed and fault.after):
        if fault.kind in ("slow", "hang", "stall"):
            wait_s += STALL_S if fault.lasts_s is None else fault.lasts_s
            end = cut() if fault.lasts_s is None else None
            fault = None
        elif fault.kind in ("refuse", "reset"):
            end = cut(ConnectionCut.RESET)
        elif fault.kind == "disconnect":
            end = cut()
        elif fault.kind == "error" and not streamed:
            error, fault = ErrorOrder(500), None
    return Beginning(wait_s, end, replace(orders, error=error, fault=fault, delay_s=wait_s))


def in_time(begin: Beginning, most_s: float) -> Beginning:
    """The same, or ``TOO_LATE`` after ``most_s`` where an answer would come later than that."""
    if begin.wait_s <= most_s or begin.end is not None:
        return begin
    return Beginning(most_s, None, replace(NOTHING, key=begin.left.key, error=TOO_LATE))
