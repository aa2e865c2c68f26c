"""Prompts go where their beginning is known, within bounds."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from tests.support.fake_env import make_call
from tests.support.routed import RoutedHost, RoutedTarget
from tpo_mp import registry
from tpo_mp.routes.prefix import Config
from tpo_mp.shm.prefixes import PrefixSegment, SharedPrefixes
from tpo_mp.shm.rows import RowTable

TARGETS = [RoutedTarget(name) for name in "abc"]


class PrefixHost(RoutedHost):
    """Two workers with one index."""

    def __init__(self, **options: Any) -> None:
        super().__init__("prefix", **options)
        self.segment, self.rows = PrefixSegment.create(), RowTable.create(8)
        found = registry.find("routes", "prefix")
        self.routes = [
            found.build(
                found.Config(**options),
                replace(env, prefixes=SharedPrefixes(self.segment, self.rows)),
            )
            for env in self.envs
        ]

    def ask(self, worker: int, prompt: str, targets: list[RoutedTarget] = TARGETS,
            **fields: Any) -> str:  # fmt: skip
        """Where a prompt goes."""
        body = b'{"messages":[{"role":"user","content":"%b"}]}' % prompt.encode()
        return str(self.routes[worker].pick(make_call(body, **fields), targets).name)

    def close(self) -> None:
        """Let go of the memory."""
        self.segment.close()
        self.rows.close()


@pytest.fixture
def host() -> Iterator[PrefixHost]:
    """A host."""
    made = PrefixHost()
    yield made
    made.close()


def test_every_worker_finds_where_a_beginning_went(host: PrefixHost) -> None:
    """Eight prompts, each asked on by the other worker, in the order of their length."""
    homes = [host.ask(0, f"{n}" + "x" * 5000) for n in range(8)]
    assert set(homes) == set("abc")
    for round_ in range(1, 4):
        for n, home in enumerate(homes):
            assert host.ask(round_ % 2, f"{n}" + "x" * 5000 + "y" * 2000 * round_) == home


def test_a_beginning_spills_over_to_the_next_which_then_has_it_too(host: PrefixHost) -> None:
    """And both are used when the load allows it."""
    prompt = "p" * 4000
    home = host.ask(0, prompt)
    host.load(1, home, 10)
    second = host.ask(0, prompt)
    assert second != home
    host.load(0, second, 1)
    assert host.ask(1, prompt) == second  # the less loaded of the two that have it
    for name in "abc":
        host.load(1, name, 20)
    assert host.ask(0, prompt) in {home, second}


def test_little_in_common_is_not_enough(host: PrefixHost) -> None:
    """A beginning that all prompts share does not draw them all to one backend."""
    shared = "s" * 2100
    first = host.ask(0, shared + "1" * 20_000)
    assert host.ask(0, shared + "2" * 20_000) != first
    assert host.ask(0, shared + "1" * 20_000) == first


def test_a_session_without_a_known_beginning_keeps_its_backend(host: PrefixHost) -> None:
    """Short prompts have no blocks; workers agree by the ring."""
    for n in range(10):
        homes = {host.ask(w % 2, f"short {w}", affinity=f"s{n}") for w in range(4)}
        assert len(homes) == 1


def test_blocked_backends_are_left_though_they_know_it(host: PrefixHost) -> None:
    """Until they are back."""
    prompt = "q" * 4000
    home = host.ask(0, prompt)
    shut = [RoutedTarget(t.name, shut=t.name == home) for t in TARGETS]
    assert host.ask(1, prompt, shut) != home


def test_a_bound_below_the_fair_share_is_refused() -> None:
    """It would never hold."""
    with pytest.raises(ValueError, match="below 1"):
        Config(spill=0.99)
