"""Errors: one place that says code, status, whether to come back and what operators graph."""

from __future__ import annotations

import pytest

from tpo_mp.errors import BY_CODE, ExitCode, Fault, RateLimited, TpoError, from_wire

LABELS = {
    "channel_closed", "inference", "config_error", "rate_limited", "budget_exceeded",
    "auth_failed", "inference_timeout", "other",
}  # fmt: skip


@pytest.mark.parametrize("code", BY_CODE)
def test_every_class_is_complete(code: str) -> None:
    """Code, a client or server status, one of the eight labels."""
    kind = BY_CODE[code]
    assert kind.code == code
    assert 400 <= kind.http_status <= 599
    assert kind.label in LABELS
    assert kind.__doc__
    error = kind("why")
    assert (error.status, error.reason, str(error)) == (kind.http_status, code, "why")


def test_codes_are_unique() -> None:
    """Two classes with one code would come back from a ring as one."""
    found = [TpoError]
    for kind in found:
        found += [sub for sub in kind.__subclasses__() if sub.__module__ == TpoError.__module__]
    assert len({kind.code for kind in found}) == len(found) == len(BY_CODE)


def test_retryable_means_that_trying_again_may_help() -> None:
    """Backends and busy limits; never a rejected request or a shed one."""
    retryable = {code for code, kind in BY_CODE.items() if kind.retryable}
    assert retryable == {
        "busy", "rate_limited", "backend_failure", "backend_timeout", "backend_refused",
        "worker_lost",
    }  # fmt: skip


def test_error_says_what_it_was_told() -> None:
    """Each detail overrides the class's own."""
    error = RateLimited("m", reason="r", param="p", retry_after_s=0.5, status=418, body=b"b",
                        lines=b"x: y\r\n")  # fmt: skip
    assert (error.message, error.reason, error.param) == ("m", "r", "p")
    assert (error.retry_after_s, error.status, error.body) == (0.5, 418, b"b")
    assert error.lines == b"x: y\r\n"
    assert RateLimited.http_status == 429


def test_error_of_a_newer_peer_is_a_fault() -> None:
    """With everything it said."""
    error = from_wire(("from_the_future", "r", "m", None, 2.0, 451, b"x: y\r\n", "rag"))
    assert type(error) is Fault
    assert (error.reason, error.message, error.retry_after_s, error.status) == ("r", "m", 2.0, 451)
    assert (error.lines, error.stage) == (b"x: y\r\n", "rag")


def test_exit_codes_are_the_documented_ones() -> None:
    """Scripts depend on the numbers."""
    assert [(code.name, int(code)) for code in ExitCode] == [
        ("OK", 0), ("FAILED", 1), ("USAGE", 2), ("BOOT_FAILED", 3), ("CRASH_LOOP", 4),
        ("ALREADY_RUNNING", 5), ("ADDRESS_IN_USE", 6),
    ]  # fmt: skip
