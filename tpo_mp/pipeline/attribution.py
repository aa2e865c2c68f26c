"""Whose fault a failed try is, read off the error's class and reason.

::

    client      the request, its caller or this gateway itself: asking any backend again is no
                better, and it says nothing of the one that was asked
    credential  the backend refused the key this gateway has for it
    capacity    the backend, or the queue in front of it, has no room just now
    backend     it was reached, and failed, or answered what is no answer
    network     it was not reached, or the line broke

Only ``backend`` and ``network`` say that a backend is broken.

Invariants: every error has one class, and an unknown one is nobody's fault but ours (``client``):
a defect of this gateway, or a backend's own code that breaks the contract of its door, must not
take a healthy backend away from everybody.  The caller's deadline and a cancelled wait are
``client``: whoever stops waiting proves nothing.
Known weakness: a backend that hangs until its callers' deadlines have passed is blamed only once
its own timeouts (``backends.timeouts``) are shorter than theirs.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Final

from tpo_mp.errors import (
    BackendFailure,
    BackendRefused,
    Busy,
    CircuitOpen,
    ConnectionCut,
    RateLimited,
    Rejected,
    Shed,
    TpoError,
)


class Blame(StrEnum):
    """Whose fault a failed try is."""

    __hash__ = str.__hash__  # the enum's own is a Python function, called per lookup

    CLIENT = "client"
    CREDENTIAL = "credential"
    CAPACITY = "capacity"
    BACKEND = "backend"
    NETWORK = "network"


CALLER_LIMITED: Final = "caller_rate_limited"
"""Reason of an upstream's 429 to the caller's own key: others are not limited by it."""

CONTEXT_TOO_SMALL: Final = "context_too_small"
"""Reason of a refusal: the prompt is too long for that backend, and another one may be larger."""

UNFIT_OUTPUT: Final = "unfit_output"
"""Reason of a failure: what the model wrote is nothing that its server can pass on."""

UNUSUALLY_SLOW: Final = "unusually_slow"
"""Reason of a try given up long before its backend's own time-outs: late, maybe not broken."""

_BY_CLASS: Final[dict[type[TpoError], Blame]] = {
    BackendRefused: Blame.NETWORK,
    ConnectionCut: Blame.NETWORK,
    CircuitOpen: Blame.CAPACITY,  # it was not asked
    RateLimited: Blame.CAPACITY,
    Shed: Blame.CAPACITY,
}
_BY_REASON: Final = {
    "upstream_auth_failed": Blame.CREDENTIAL,
    "connect_timeout": Blame.NETWORK,
    "no_reply": Blame.NETWORK,
    "cut_off": Blame.NETWORK,
    UNUSUALLY_SLOW: Blame.CAPACITY,
    CALLER_LIMITED: Blame.CLIENT,
    "bad_tool_arguments": Blame.CLIENT,  # what a model wrote, not what a server did
    UNFIT_OUTPUT: Blame.CLIENT,
}

_NOT_DONE: Final = (Rejected, Busy, CircuitOpen, BackendRefused)
_SAID_SO: Final = frozenset({
    "connect_timeout", "upstream_auth_failed", "upstream_error", "upstream_overloaded",
    "server_error",
})  # fmt: skip


def may_have_worked(error: BaseException | None) -> bool:
    """Whether the backend of a failed try may have done its work all the same.

    Not if it was never reached, or answered itself that it did not: that of a gateway before it
    (504) is no such answer.
    """
    if not isinstance(error, TpoError):
        return True
    return not isinstance(error, _NOT_DONE) and error.reason not in _SAID_SO


def blame(error: BaseException) -> Blame:
    """Tell whose fault ``error`` is; it ended one try of one backend."""
    if not isinstance(error, TpoError):
        return Blame.NETWORK if isinstance(error, ConnectionError) else Blame.CLIENT
    found = _BY_REASON.get(error.reason) or _BY_CLASS.get(type(error))
    if found is not None:
        return found
    if not isinstance(error, BackendFailure):
        return Blame.CLIENT
    if error.reason == "upstream_overloaded" and error.retry_after_s is not None:
        return Blame.CAPACITY  # one that says until when is in order
    return Blame.BACKEND
