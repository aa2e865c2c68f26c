"""Every error a user, a client or another process can meet.

::

    TpoError                 code · http_status · retryable · label
      Rejected       4xx     InvalidRequest  Unauthorized  NotFound  TooLarge
                             PolicyViolation  OverBudget
      Busy       429/503     RateLimited  Shed  Draining
      BackendFailure 502     BackendTimeout (504)  BackendRefused  CircuitOpen (503)
                             ConnectionCut (the client is told nothing)
      Cancelled      499     the client left; never sent, only recorded
      DeadlineExceeded 504   the caller's own deadline passed
      Fault          500     ConfigError  RingCorrupt  WorkerLost (502)

A feature picks a class and adds a ``reason`` slug, so a new feature never needs a new class.
Retry asks ``retryable``, surfaces ``http_status``, metrics ``label``: nobody asks for the class.
Across a process an error travels as ``to_wire()`` and comes back as the same class.

Invariants: ``code`` is unique; ``label`` is one of the eight strings operators already graph.
"""

from __future__ import annotations

from enum import IntEnum
from typing import ClassVar, TypeAlias

WireError: TypeAlias = tuple[str, str, str, str | None, float | None, int | None, bytes, str]
"""code, reason, message, param, retry_after_s, upstream status, header lines, stage."""


class TpoError(Exception):
    """Base of all errors; ``message`` is safe to show to a client."""

    code: ClassVar[str] = "error"
    http_status: ClassVar[int] = 500
    retryable: ClassVar[bool] = False
    label: ClassVar[str] = "other"

    __slots__ = (
        "body", "lines", "message", "param", "reason", "retry_after_s", "stage", "status",
    )  # fmt: skip

    def __init__(
        self,
        message: str,
        *,
        reason: str = "",
        param: str | None = None,
        retry_after_s: float | None = None,
        status: int | None = None,
        body: bytes | None = None,
        lines: bytes = b"",
        stage: str = "",
    ) -> None:
        """Say what is wrong.

        ``reason`` is a slug (default: the class's code), ``param`` the offending field,
        ``status`` overrides the class's HTTP status (an upstream's own 4xx, say), ``body``
        is an upstream's error body that a same-dialect client may see as it is, and ``lines`` are
        those of its header lines that are for clients (limits left, whether to retry).
        ``stage`` is where it happened, for metrics; the chain fills it in.
        """
        super().__init__(message)
        self.message = message
        self.reason = reason or self.code
        self.param = param
        self.retry_after_s = retry_after_s
        self.status = status if status is not None else self.http_status
        self.body = body
        self.lines = lines
        self.stage = stage

    def to_wire(self) -> WireError:
        """Render for a ring frame; ``from_wire`` builds the same class again."""
        return (
            self.code, self.reason, self.message, self.param, self.retry_after_s, self.status,
            self.lines,
            self.stage,
        )  # fmt: skip


class Rejected(TpoError):
    """The client must change its request."""

    code = "rejected"
    http_status = 400


class InvalidRequest(Rejected):
    """Malformed or out of range; ``param`` names the field."""

    code = "invalid_request"


class Unauthorized(Rejected):
    """No credential, or one that is not accepted."""

    code = "unauthorized"
    http_status = 401
    label = "auth_failed"


class NotFound(Rejected):
    """Unknown route, model or id."""

    code = "not_found"
    http_status = 404


class TooLarge(Rejected):
    """The body, head or answer is over its limit."""

    code = "too_large"
    http_status = 413


class PolicyViolation(Rejected):
    """A guard or permission said no."""

    code = "policy_violation"


class OverBudget(Rejected):
    """Spent; waiting does not help."""

    code = "over_budget"
    http_status = 429
    label = "budget_exceeded"


class Busy(TpoError):
    """Come back later."""

    code = "busy"
    http_status = 503
    retryable = True
    label = "rate_limited"


class RateLimited(Busy):
    """A configured limit was reached."""

    code = "rate_limited"
    http_status = 429


class Shed(Busy):
    """A queue in front of a stage is full, or no backend can take the call."""

    code = "shed"
    retryable = False


class Draining(Busy):
    """This host is shutting down."""

    code = "draining"
    retryable = False
    label = "channel_closed"


class BackendFailure(TpoError):
    """The upstream answered nonsense, broke off, or reported a failure of its own."""

    code = "backend_failure"
    http_status = 502
    retryable = True
    label = "inference"


class BackendTimeout(BackendFailure):
    """The upstream was silent for too long."""

    code = "backend_timeout"
    http_status = 504
    label = "inference_timeout"


class BackendRefused(BackendFailure):
    """No connection to the upstream."""

    code = "backend_refused"


class CircuitOpen(BackendFailure):
    """The upstream is known to be failing and was not asked."""

    code = "circuit_open"
    http_status = 503
    retryable = False


class ConnectionCut(BackendFailure):
    """A simulated provider broke the connection off; so does whoever stands before it.

    With the reason ``RESET`` it was a reset, else a close in good order.
    """

    code = "connection_cut"
    retryable = False
    RESET: ClassVar[str] = "connection_reset"


class Cancelled(TpoError):
    """The client left before the answer was complete."""

    code = "cancelled"
    http_status = 499
    label = "channel_closed"


class DeadlineExceeded(TpoError):
    """The caller's deadline passed."""

    code = "deadline_exceeded"
    http_status = 504
    label = "inference_timeout"


class Fault(TpoError):
    """A defect or loss on our side."""

    code = "fault"


class ConfigError(Fault):
    """The configuration is refused; the message names path, value and remedy."""

    code = "config_error"
    label = "config_error"


class RingCorrupt(Fault):
    """A shared-memory record failed its checksum."""

    code = "ring_corrupt"
    label = "channel_closed"


class WorkerLost(Fault):
    """The shard that held the call died."""

    code = "worker_lost"
    http_status = 502
    retryable = True
    label = "channel_closed"


class ExitCode(IntEnum):
    """Exit codes of every command."""

    OK = 0
    FAILED = 1
    USAGE = 2
    BOOT_FAILED = 3
    CRASH_LOOP = 4
    ALREADY_RUNNING = 5
    ADDRESS_IN_USE = 6


def _classes(root: type[TpoError]) -> dict[str, type[TpoError]]:
    found = {root.code: root}
    for sub in root.__subclasses__():
        found |= _classes(sub)
    return found


BY_CODE = _classes(TpoError)


def from_wire(wire: WireError) -> TpoError:
    """Build the error a peer sent; an unknown code (newer peer) becomes ``Fault``."""
    code, reason, message, param, retry_after_s, status, lines, stage = wire
    return BY_CODE.get(code, Fault)(
        message,
        reason=reason,
        param=param,
        retry_after_s=retry_after_s,
        status=status,
        lines=lines,
        stage=stage,
    )
