"""The simulated circuit breaker: opens, refuses, tries, closes."""

from __future__ import annotations

import random

from tests.support.fake_env import FakeLedger
from tpo_mp.simulator.fault_breaker import BreakerRule, SimulatedBreaker

RULE = BreakerRule()


def breaker(ledger: FakeLedger | None = None, epoch: int = 1) -> SimulatedBreaker:
    """One with the usual numbers: 5 failures in 10 s, 30 s open, 3 successes."""
    return SimulatedBreaker(ledger or FakeLedger(), "breaker:x", RULE, epoch)


def test_five_failures_in_ten_seconds_open_it() -> None:
    """The fifth, and no sooner; two processes see the same."""
    ledger = FakeLedger()
    processes = [breaker(ledger), breaker(ledger)]
    for n in range(4):
        processes[n % 2].failed(100.0 + n)
        assert processes[0].state(100.0 + n) == "closed"
    processes[0].failed(109.9)
    assert processes[1].state(109.9) == "open"
    assert abs(processes[1].refused_for(119.9) - 20.0) < 1e-6


def test_failures_that_are_too_far_apart_do_not_open_it() -> None:
    """Any five of them must lie within ten seconds."""
    one = breaker()
    for n in range(20):
        one.failed(100.0 + 2.6 * n)
    assert one.state(152.0) == "closed"


def test_it_opens_exactly_when_a_list_of_failures_says_so() -> None:
    """Random failures against the definition, kept as a list."""
    rng = random.Random(7)
    for _ in range(50):
        one, times, now = breaker(), [], 1000.0
        while True:
            now += rng.expovariate(0.45)
            times.append(now)
            one.failed(now)
            if len(times) >= 5 and now - times[-5] <= RULE.within_s:
                assert one.state(now) == "open", times
                break
            assert one.state(now) == "closed", times


def test_three_successes_close_it_again() -> None:
    """After thirty seconds each call is tried."""
    one = breaker()
    for _ in range(5):
        one.failed(100.0)
    assert one.refused_for(129.9) > 0
    assert one.refused_for(130.0) == 0
    assert one.state(130.0) == "half_open"
    one.succeeded()
    one.succeeded()
    assert one.state(131.0) == "half_open"
    one.succeeded()
    assert one.state(132.0) == "closed"
    for n in range(4):
        one.failed(133.0 + n)
    assert one.state(137.0) == "closed"


def test_one_failure_while_it_tries_opens_it_again() -> None:
    """For as long again; successes before it count no more."""
    one = breaker()
    for _ in range(5):
        one.failed(100.0)
    assert one.refused_for(130.0) == 0
    one.succeeded()
    one.succeeded()
    one.failed(131.0)
    assert one.refused_for(131.0) == 30.0
    assert one.refused_for(161.0) == 0
    one.succeeded()
    assert one.state(161.0) == "half_open"


def test_successes_do_not_hide_failures() -> None:
    """Only time does."""
    one = breaker()
    for n in range(5):
        one.failed(100.0 + n)
        one.succeeded()
    assert one.state(104.0) == "open"


def test_another_activation_begins_closed() -> None:
    """Whatever the one before it saw."""
    ledger = FakeLedger()
    for _ in range(5):
        breaker(ledger).failed(100.0)
    assert breaker(ledger).state(100.0) == "open"
    fresh = breaker(ledger, epoch=2)
    assert fresh.state(100.0) == "closed"
    for _ in range(4):
        fresh.failed(101.0)
    assert fresh.state(101.0) == "closed"


def test_breaker_of_one_failure_opens_at_once() -> None:
    """The smallest there is."""
    one = SimulatedBreaker(FakeLedger(), "x", BreakerRule(failures=1), 1)
    one.failed(5.0)
    assert one.state(5.0) == "open"
