"""Faults from use: load, budgets, and the count of calls under way."""

from __future__ import annotations

import os

import msgspec
import pytest

from tests.support.fake_env import FakeLedger
from tpo_mp.simulator.fault_pressure import Budget, CallsUnderWay, LoadStep, Spending


@pytest.mark.parametrize(
    ("calls", "probability", "wait_s"),
    [(50, 0.0, 0.0), (51, 0.12, 2.0), (60, 0.3, 20.0), (95, 1.0, 90.0), (500, 1.0, 300.0)],
)
def test_load_follows_the_formula(calls: int, probability: float, wait_s: float) -> None:
    """p = min(1, 0.1 + excess x slope); wait = min(300, 2 x excess)."""
    load = LoadStep(over=50, slope=0.02)
    assert load.probability(calls) == pytest.approx(probability)
    assert load.wait_s(calls) == wait_s


def test_requests_of_a_period_are_exact() -> None:
    """Ten and no more; then none until the next period."""
    spending = Spending(FakeLedger(), "x", Budget(requests=10, per_s=60), 1)
    assert [spending.refused_for(5.0) for _ in range(10)] == [0.0] * 10
    assert spending.refused_for(20.0) == 40.0
    assert spending.refused_for(60.0) == 0.0


def test_tokens_are_spent_by_answers() -> None:
    """The answer that goes over the budget is still given."""
    ledger = FakeLedger()
    spending = Spending(ledger, "x", Budget(tokens=100, per_s=3600), 1)
    assert spending.refused_for(0.0) == 0.0
    spending.spend(99, 1.0)
    assert spending.refused_for(2.0) == 0.0
    spending.spend(50, 3.0)
    assert spending.refused_for(600.0) == 3000.0
    other_process = Spending(ledger, "x", Budget(tokens=100, per_s=3600), 1)
    assert other_process.refused_for(600.0) == 3000.0
    assert Spending(ledger, "x", Budget(tokens=100, per_s=3600), 2).refused_for(600.0) == 0.0
    assert spending.refused_for(3600.0) == 0.0


@pytest.mark.parametrize("budget", [{}, {"tokens": 1, "requests": 1}, {"tokens": 1, "per_s": 0}])
def test_budget_counts_one_thing(budget: dict[str, int]) -> None:
    """Tokens or requests, over some time."""
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert(budget, Budget)


def test_calls_of_all_processes_are_counted() -> None:
    """Each in its place; who dies takes its calls along, and its place is given away."""
    ledger, living = FakeLedger(), {os.getpid(), 7, 8}
    here, there, third = (CallsUnderWay(ledger, living.__contains__) for _ in range(3))
    there._pid, third._pid = 7, 8
    for process in (here, there, there, third):
        process.enter()
    assert [process.total() for process in (here, there, third)] == [4, 4, 4]
    living.remove(7)
    assert here.total() == 2
    heir = CallsUnderWay(ledger, living.__contains__)
    heir._pid = 9
    living.add(9)
    heir.enter()
    assert here.total() == 3
    assert len([name for name in ledger.names if name.startswith("load:")]) == 4  # one is free
    for process in (here, third, heir):
        process.leave()
    assert here.total() == 0


def test_living_and_dead_processes_are_told_apart() -> None:
    """Without being told."""
    ledger = FakeLedger()
    ledger.names["load:0"] = (float(2**22 + 1), 5.0, 0.0, 0.0)  # no pid is that high
    calls = CallsUnderWay(ledger)
    assert calls.total() == 0
    calls.enter()
    assert calls.total() == 1
    assert ledger.names["load:0"][0] == os.getpid()
