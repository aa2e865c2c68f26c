"""Failover: the configured order, what was tried left out, and the account of it."""

from __future__ import annotations

from dataclasses import dataclass, replace

from tests.support.fake_env import FakeWorld, SilentMetrics, SilentSeries, make_call
from tpo_mp.routes.failover import FEATURE
from tpo_mp.types import Call


@dataclass
class Backend:
    """A target as the route sees it."""

    name: str
    open: bool = False

    def blocked(self, _call: Call) -> bool:
        """What its breaker says."""
        return self.open


class Counted(SilentMetrics):
    """Metrics a test can read."""

    def __init__(self) -> None:
        self.series: dict[tuple[str, ...], SilentSeries] = {}

    def counter(self, name: str, help: str, **labels: str) -> SilentSeries:
        """Make or find a counter."""
        return self.series.setdefault((name, *labels.values()), SilentSeries())


def test_every_call_begins_with_the_first_and_goes_on_in_order() -> None:
    """Primary, secondary, tertiary; when all were tried, the first again."""
    counted = Counted()
    route = FEATURE.build(FEATURE.Config(), replace(FakeWorld().env, metrics=counted))
    targets = [Backend("one"), Backend("two"), Backend("three")]

    def pick(call: Call) -> str:
        call.backend = route.pick(call, targets).name
        call.tried = (call.tried or set()) | {call.backend}
        return call.backend

    call = make_call(b"")
    assert [pick(call) for _ in range(4)] == ["one", "two", "three", "one"]
    assert [pick(make_call(b"")) for _ in range(3)] == ["one"] * 3
    told = {key: series.value for key, series in counted.series.items()}
    assert told[("cascade_attempts_total", "one")] == 5
    assert told[("cascade_attempts_total", "three")] == 1
    assert told[("cascade_failures_total", "one")] == 1
    assert told[("cascade_failures_total", "three")] == 1


def test_what_a_breaker_keeps_closed_off_is_skipped_while_another_is_left() -> None:
    """And asked if there is none, so that its error can be told."""
    route = FEATURE.build(FEATURE.Config(), FakeWorld().env)
    one, two, three = Backend("one", True), Backend("two"), Backend("three")
    assert route.pick(make_call(b""), [one, two, three]) is two
    assert route.pick(make_call(b"", tried={"two"}), [one, two, three]) is three
    assert route.pick(make_call(b"", tried={"two", "three"}), [one, two, three]) is one
    two.open = three.open = True
    assert route.pick(make_call(b""), [one, two, three]) is one
