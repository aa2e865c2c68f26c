"""Rules at work: order, counting over processes, chance, limits, waits."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from tests.support.fake_env import FakeLedger
from tests.support.fault_facts import FakeFacts, facts
from tpo_mp.simulator.fault_rules import FaultRule, FaultRules, named
from tpo_mp.simulator.orders import ErrorOrder, FaultOrder, Orders


def rules(*tables: dict[str, Any], ledger: FakeLedger | None = None, **more: Any) -> FaultRules:
    """Rules as a file has them."""
    made = [msgspec.convert(table, FaultRule) for table in tables]
    return FaultRules(made, ledger or FakeLedger(), scope="test", **more)


def struck(made: FaultRules, of: FakeFacts | None = None, elapsed_s: float = 0.0) -> bool:
    """Whether a request meets anything."""
    return made.choose(of or facts(), elapsed_s, 0.0) is not None


def test_two_processes_count_together() -> None:
    """Every third request of the host, whichever process takes it."""
    ledger = FakeLedger()
    table = {"error": "503", "sequence": {"every": 3}}
    processes = [rules(table, ledger=ledger) for _ in range(2)]
    met = [struck(processes[n % 2]) for n in range(9)]
    assert met == [False, False, True] * 3


def test_limit_is_the_hosts() -> None:
    """Five in all, as a table that two processes obey."""
    ledger = FakeLedger()
    processes = [rules({"error": "503", "limit": 5}, ledger=ledger) for _ in range(2)]
    assert [struck(processes[n % 2]) for n in range(12)] == [True] * 5 + [False] * 7


def test_only_requests_that_the_condition_lets_pass_are_counted() -> None:
    """The second that matches, not the second of all."""
    made = rules({"error": "503", "when": {"model": "a"}, "sequence": {"numbers": [2]}})
    met = [struck(made, facts(model=model)) for model in ("a", "b", "b", "a", "a")]
    assert met == [False, False, False, True, False]


def test_first_rule_that_strikes_wins_and_delays_add_up() -> None:
    """A delay alone does not end the search."""
    made = rules(
        {"delay_ms": 100},
        {"error": "429", "when": {"model": "a"}},
        {"delay_ms": 50},
        {"fault": "disconnect_after=3", "delay_ms": 7},
        {"error": "500"},
    )
    assert made.choose(facts(model="a"), 0, 0) == Orders(
        error=ErrorOrder(429), delay_s=0.1, rule="fault-2"
    )
    assert made.choose(facts(model="b"), 0, 0) == Orders(
        fault=FaultOrder("disconnect", 3), delay_s=pytest.approx(0.157), rule="fault-4"
    )


def test_chance_is_drawn_from_the_requests_own_numbers() -> None:
    """The same requests meet the same, in any process and order; about as often as it says."""
    requests = [facts(drawn=b"%d" % n) for n in range(2000)]
    table = {"error": "503", "probability": 0.25}
    one = [struck(rules(table), request) for request in requests]
    processes = [rules(table), rules(table)]
    two = [struck(processes[n % 2], request) for n, request in enumerate(requests)]
    assert one == two
    assert 400 < sum(one) < 600
    other = [struck(rules(table | {"name": "other"}), request) for request in requests]
    assert other != one


def test_chance_and_limit_together_strike_so_often() -> None:
    """Who is not drawn does not use the limit up."""
    made = rules({"error": "503", "probability": 0.2, "limit": 3})
    assert sum(struck(made, facts(drawn=b"%d" % n)) for n in range(200)) == 3


def test_rule_that_is_changed_counts_anew() -> None:
    """One that is written the same goes on where it was."""
    ledger, table = FakeLedger(), {"error": "503", "sequence": {"first": 2}}
    assert [struck(rules(table, ledger=ledger)) for _ in range(3)] == [True, True, False]
    changed = table | {"error": "500"}
    assert [struck(rules(changed, ledger=ledger)) for _ in range(3)] == [True, True, False]


def test_another_epoch_counts_anew() -> None:
    """A scenario that is activated once more begins at its first request."""
    ledger, table = FakeLedger(), {"error": "503", "sequence": {"first": 1}}
    met = [struck(rules(table, ledger=ledger, epoch=epoch)) for epoch in (1, 1, 2, 2)]
    assert met == [True, False, True, False]


def test_load_tells_how_long_to_wait() -> None:
    """More calls, more failures, longer waits."""
    made = rules({"error": "503", "load": {"over": 50, "slope": 0.5}})
    assert made.choose(facts(under_way=50), 0, 0) is None
    crowded = made.choose(facts(under_way=60), 0, 0)
    assert crowded is not None
    assert crowded.error == ErrorOrder(503, 20.0)
    assert made.counts_calls
    assert not rules({"error": "503"}).counts_calls


def test_spent_budget_refuses_until_its_period_ends() -> None:
    """With the wait until then, unless the rule says another."""
    table = {"error": "quota_exceeded", "budget": {"tokens": 100, "per_s": 60}}
    made = rules(table)
    assert not struck(made, elapsed_s=5)
    made.spend(100, 6.0)
    met = made.choose(facts(), 10.0, 0)
    assert met is not None
    assert met.error == ErrorOrder(429, 50.0, "quota_exceeded")
    assert not struck(made, elapsed_s=60)


def test_exponential_wait_doubles_with_each_try() -> None:
    """Up to five minutes."""
    made = rules({"error": "503; retry_after=2", "retry_after": "exponential"})
    waits = []
    for tried in (0, 1, 2, 20):
        met = made.choose(facts(tried=tried), 0, 0)
        assert met is not None
        assert met.error is not None
        waits.append(met.error.retry_after_s)
    assert waits == [2, 4, 8, 300]


def test_first_in_the_error_counts_a_clients_own_tries() -> None:
    """As in the header."""
    made = rules({"error": "503; first=2"})
    assert [struck(made, facts(tried=tried)) for tried in (0, 1, 2)] == [True, True, False]


def test_window_is_asked_before_anything_is_counted() -> None:
    """Requests before it do not use up its sequence."""
    made = rules({"error": "503", "window": {"start_s": 10}, "sequence": {"first": 1}})
    assert [struck(made, elapsed_s=at) for at in (0, 9, 10, 11)] == [False, False, True, False]


@pytest.mark.parametrize(
    ("table", "said"),
    [
        ({}, "needs an error, a fault or a delay"),
        ({"error": "429", "fault": "hang"}, "not both"),
        ({"error": "428"}, "is no error"),
        ({"error": "rate_limt"}, "did you mean 'rate_limit'"),
        ({"fault": "disconect"}, "did you mean 'disconnect'"),
        ({"fault": "refuse_after=3"}, "is no fault"),
        ({"error": "429", "probability": 1.1}, "<= 1"),
        ({"error": "429", "chance": 1}, "unknown field"),
    ],
)
def test_rules_that_make_no_sense_are_refused(table: dict[str, Any], said: str) -> None:
    """When they are read."""
    with pytest.raises(msgspec.ValidationError, match=said):
        msgspec.convert(table, FaultRule)


def test_names_are_unique() -> None:
    """Two rules of one name must not count together."""
    made = [FaultRule(error="429", name=name) for name in ("a", "", "a", "fault-2")]
    assert list(named(made)) == ["a", "fault-2", "a-3", "fault-2-4"]
