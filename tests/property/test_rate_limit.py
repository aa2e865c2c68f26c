"""Rate limits against exact arithmetic: the same calls come in, and no interval holds too many."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from tests.support.fake_env import FakeWorld, make_call
from tpo_mp.errors import RateLimited
from tpo_mp.stages.rate_limit import FEATURE, Config

PERIODS = {"rps": 1, "rpm": 60, "rph": 3600}
LIMITS = st.integers(1, 3)
LEVEL = st.fixed_dictionaries(
    {}, optional={"rps": LIMITS, "rpm": LIMITS, "rph": LIMITS, "burst": LIMITS}
).filter(lambda level: set(level) & set(PERIODS))
LEVELS = st.dictionaries(st.sampled_from(["session", "tenant", "model", "global"]), LEVEL,
                         min_size=2)  # fmt: skip
CALLS = st.lists(
    st.tuples(
        st.one_of(st.just(0), st.just(0), st.integers(0, 16), st.integers(0, 16 * 600)),
        st.sampled_from("ab"), st.sampled_from("st"), st.sampled_from("mn"), st.integers(0, 1),
    ),
    min_size=10, max_size=60,
)  # fmt: skip


class Oracle:
    """Buckets in fractions, all of them looked at before any is filled."""

    def __init__(self, levels: dict[str, dict[str, int]]) -> None:
        self._levels = levels
        self._used: dict[tuple[str, ...], tuple[Fraction, Fraction]] = {}

    def buckets(self, names: dict[str, str]) -> list[tuple[tuple[str, ...], Fraction, int]]:
        """Name, rate and room of each bucket that a call goes into."""
        found: list[tuple[tuple[str, ...], Fraction, int]] = []
        for level, windows in self._levels.items():
            burst = windows.get("burst")
            for window, seconds in PERIODS.items():
                if window in windows:
                    limit = windows[window]
                    name = (level, names[level], window)
                    found.append((name, Fraction(limit, seconds), burst or limit))
                    burst = None
        return found

    def lets_in(self, names: dict[str, str], now: Fraction) -> bool:
        """Whether a call comes in."""
        after = {}
        for name, rate, room in self.buckets(names):
            used, at = self._used.get(name, (Fraction(0), now))
            used = max(used - (now - at) * rate, Fraction(0)) + 1
            if used > room:
                return False
            after[name] = (used, now)
        self._used |= after
        return True


@given(LEVELS, CALLS)
def test_the_same_calls_come_in_as_by_exact_arithmetic(
    levels: dict[str, dict[str, int]], calls: list[tuple[int, str, str, str, int]]
) -> None:
    """All levels or none, over two workers, at every sixteenth of a second."""
    world = FakeWorld()
    options: Any = msgspec.convert(levels, Config)
    workers = [FEATURE.build(options, world.env) for _ in range(2)]
    oracle, began = Oracle(levels), Fraction(world.now)
    now, entered = Fraction(world.now), []
    for later, tenant, session, model, worker in calls:
        now += Fraction(later, 16)
        world.now = float(now)
        call = make_call(b"", model=model, tenant=tenant, session=session)
        try:
            workers[worker].before(call)
            wait_s = 0.0
        except RateLimited as error:
            wait_s = error.retry_after_s or 0.0
        names = {"session": f"{tenant}/{session}", "tenant": tenant, "model": model, "global": ""}
        came_in = wait_s == 0
        assert came_in is oracle.lets_in(names, now), (now - began, call.session)
        if came_in:
            entered.append(
                (now, {name: (rate, room) for name, rate, room in oracle.buckets(names)})
            )
    for first, (since, buckets) in enumerate(entered):
        for name, (rate, room) in buckets.items():
            held = 0
            for at, others in entered[first:]:
                held += name in others
                assert held <= room + (at - since) * rate, name
