"""Who is left out of a route's choice for how it stands."""

from __future__ import annotations

import pytest

from tests.support.fake_env import FakeWorld
from tpo_mp.errors import CircuitOpen
from tpo_mp.pipeline.standings import LOOK_S, Standings
from tpo_mp.shm.standing import Fitness, drain_cells, drain_row, health_cells, health_row


class Case:
    """Two backends, of which the world says how they stand."""

    def __init__(self) -> None:
        self.world = FakeWorld()
        self.standings = Standings(self.world.env, ["a", "b"])

    def say(self, name: str, state: Fitness, for_s: float = 60.0) -> None:
        """What control finds."""
        now = self.world.now
        cells = health_cells(state, now, now + for_s, "")
        self.world.env.ledger.update(health_row(name), lambda _: cells)
        self.world.advance(LOOK_S)

    def out(self) -> list[str]:
        """Who is left out while another is left."""
        return [n for n in "ab" if self.standings.advises(None, n)]  # type: ignore[arg-type]


def test_only_what_is_starting_or_down_is_left_out() -> None:
    """What nobody asked is not."""
    case = Case()
    assert case.out() == []
    case.say("a", Fitness.DOWN)
    case.say("b", Fitness.STARTING)
    assert case.out() == ["a", "b"]
    case.say("b", Fitness.READY)
    assert case.out() == ["a"]


def test_what_nobody_renews_lapses() -> None:
    """Control may be away for long."""
    case = Case()
    case.say("a", Fitness.DOWN, for_s=5.0)
    case.world.advance(4.9)
    assert case.out() == ["a"]
    case.world.advance(0.2)
    assert case.out() == []


def test_a_drained_one_refuses() -> None:
    """With the time after which to come back."""
    case = Case()
    served: list[object] = []
    serve = case.standings.guarded(served.append, "a")  # type: ignore[arg-type,return-value]
    serve(None)  # type: ignore[arg-type]
    case.world.env.ledger.update(drain_row("a"), lambda _: drain_cells(1.0, on=True))
    case.world.advance(LOOK_S)
    assert case.standings.refuses(None, "a")  # type: ignore[arg-type]
    with pytest.raises(CircuitOpen) as caught:
        serve(None)  # type: ignore[arg-type]
    assert (caught.value.reason, caught.value.retry_after_s, len(served)) == (
        "backend_draining", 5, 1,
    )  # fmt: skip
