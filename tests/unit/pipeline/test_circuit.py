"""The breaker's states and waits, against the published table and against a machine of its own."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tpo_mp.pipeline.circuit import (
    Circuit,
    Rules,
    State,
    closed,
    failed,
    generation_of,
    given_back,
    opened,
    owner_number,
    pack,
    probe_failed,
    probe_passed,
    seat_of,
    succeeded,
    taken,
    unpack,
    wait_s,
)

RULES = Rules(threshold=5, open_s=60.0, probes=1, success_rate=0.8, permit_s=30.0)


def open_after(rules: Rules, now: float = 1000.0) -> Circuit:
    """A circuit that just opened."""
    c = Circuit()
    for _ in range(rules.threshold):
        c = failed(c, rules, now)
    return c


def test_the_waits_double_with_each_failed_probe() -> None:
    """Once for the first opening ("probe 0"), then 2, 4 … 64 times, and no longer than that."""
    now, c, waits = 1000.0, open_after(RULES), []
    for _ in range(9):
        waits.append((c.until - now) / RULES.open_s)
        now = c.until
        c = probe_failed(taken(c, RULES, now, 7), RULES, now)
    assert waits == [1, 2, 4, 8, 16, 32, 64, 64, 64]
    assert [wait_s(1.0, n) for n in range(8)] == [1, 2, 4, 8, 16, 32, 64, 64]


def test_a_probe_that_passes_and_a_reset_begin_the_waits_anew() -> None:
    """The next opening waits once again."""
    c = open_after(RULES)
    for _ in range(3):
        c = probe_failed(taken(c, RULES, c.until, 7), RULES, c.until)
    assert c.probe_failures == 3
    for fresh in (probe_passed(taken(c, RULES, c.until, 7), RULES, 5000.0), closed(c, 5000.0)):
        assert (fresh.state(5000.0), fresh.probe_failures) == (State.CLOSED, 0)
        again = fresh
        for _ in range(5):
            again = failed(again, RULES, 6000.0)
        assert again.until == 6060.0


def test_only_failures_in_a_row_open_it() -> None:
    """Four and a success, any number of times, do not; five do."""
    c = Circuit()
    for _ in range(20):
        for _ in range(4):
            c = failed(c, RULES, 1.0)
        assert (c.state(1.0), c.failures) == (State.CLOSED, 4)
        c = succeeded(c)
    assert c.calm
    assert open_after(RULES).state(1000.0) is State.OPEN


def test_it_is_half_open_from_the_moment_it_may_be_probed() -> None:
    """And while it is, and between the probes of a trial."""
    rules = RULES._replace(probes=3, success_rate=1.0)
    c = open_after(rules)
    assert c.state(1059.9) is State.OPEN
    assert c.state(1060.0) is State.HALF_OPEN
    c = taken(c, rules, 1060.0, 7)
    assert (c.state(1061.0), c.until) == (State.HALF_OPEN, 1090.0)
    c = probe_passed(c, rules, 1062.0)
    assert (c.state(1062.0), c.until, c.prober) == (State.HALF_OPEN, 1062.0, 0)
    c = given_back(taken(c, rules, 1063.0, 7), 1064.0)
    assert (c.passed, c.until) == (1, 1064.0)


@pytest.mark.parametrize(
    ("probes", "rate", "outcomes", "state"),
    [
        (1, 0.8, "+", "closed"),
        (2, 0.8, "+", "half_open"),
        (2, 0.8, "++", "closed"),
        (2, 0.8, "+-", "open"),
        (5, 0.8, "++++", "closed"),
        (5, 0.8, "+++-+", "closed"),
        (5, 0.8, "-+++", "half_open"),
        (5, 0.8, "-+-", "open"),
        (4, 0.01, "---", "half_open"),
        (4, 0.01, "---+", "closed"),
        (4, 0.01, "----", "open"),
    ],
)
def test_a_trial_closes_it_by_the_share_that_passes(
    probes: int, rate: float, outcomes: str, state: str
) -> None:
    """One success is not enough unless it is asked to be; what cannot be reached ends the trial."""
    rules = RULES._replace(probes=probes, success_rate=rate)
    c, now = open_after(rules), 2000.0
    for outcome in outcomes:
        c = taken(c, rules, now, 7)
        c = probe_passed(c, rules, now) if outcome == "+" else probe_failed(c, rules, now)
        now += 1
    assert c.state(now - 1) == state


def test_every_change_of_state_and_every_permit_is_a_new_generation() -> None:
    """What a call saw before it can be told from what is true now."""
    seen = []
    c = failed(Circuit(), RULES, 1.0)
    assert c.generation == 0
    for turn in (
        lambda c: opened(c, RULES, 1.0),
        lambda c: taken(c, RULES, 70.0, 7),
        lambda c: given_back(c, 71.0),
        lambda c: taken(c, RULES, 72.0, 7),
        lambda c: probe_failed(c, RULES, 73.0),
        lambda c: closed(c, 74.0),
    ):
        c = turn(c)
        seen.append(c.generation)
    assert seen == sorted(set(seen)) == list(range(1, 7))


@given(
    st.builds(
        Circuit,
        generation=st.integers(0, (1 << 25) - 1),
        half=st.booleans(),
        probe_failures=st.integers(0, 127),
        failures=st.integers(0, 1023),
        passed=st.integers(0, 31),
        missed=st.integers(0, 31),
        since=st.floats(0, 1e9),
        until=st.floats(0, 1e9),
        prober=st.integers(0, (1 << 42)),
    )
)
def test_four_numbers_hold_it_all(c: Circuit) -> None:
    """Packed and unpacked it is the same."""
    assert unpack(pack(c)) == c
    assert generation_of(pack(c)) == c.generation


def test_an_owner_is_one_process_of_one_seat() -> None:
    """Its seat can be read back; the next process of the seat is somebody else."""
    one, next_one = owner_number(5, (3, 1234)), owner_number(5, (4, 1234))
    assert one != next_one
    assert one != owner_number(6, (3, 1234))
    assert seat_of(one) == seat_of(next_one) == 5
    assert owner_number(0, (0, 0)) > 0
