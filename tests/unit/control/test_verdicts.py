"""How answers of a backend become a state."""

from __future__ import annotations

import pytest

from tpo_mp.control.verdicts import LOADING, Judgement
from tpo_mp.shm.standing import Fitness

GOOD, BAD = "", "status"


def after(*answers: str, rise: int = 2, fall: int = 3) -> Fitness:
    """The state after these."""
    judgement = Judgement(rise, fall)
    for at, why in enumerate(answers):
        judgement.heard(why, float(at))
    return judgement.state


@pytest.mark.parametrize(
    ("answers", "state"),
    [
        ((), Fitness.UNKNOWN),
        ((GOOD,), Fitness.READY),
        ((BAD,), Fitness.STARTING),
        ((BAD, BAD, BAD), Fitness.DOWN),
        ((LOADING,) * 9, Fitness.STARTING),
        ((BAD, GOOD), Fitness.READY),
        ((GOOD, BAD, BAD, GOOD, BAD, BAD), Fitness.READY),
        ((GOOD, BAD, BAD, BAD), Fitness.DOWN),
        ((GOOD, LOADING, LOADING), Fitness.READY),
        ((GOOD, LOADING, LOADING, LOADING), Fitness.STARTING),
        ((GOOD, BAD, BAD, BAD, LOADING), Fitness.STARTING),
        ((GOOD, BAD, BAD, BAD, GOOD), Fitness.DOWN),
        ((GOOD, BAD, BAD, BAD, GOOD, GOOD), Fitness.READY),
    ],
)
def test_states(answers: tuple[str, ...], state: Fitness) -> None:
    """Two good answers bring one back that was down, three bad ones take a ready one away."""
    assert after(*answers) is state


def test_it_goes_on_where_the_process_before_stopped() -> None:
    """And says since when it is so."""
    judgement = Judgement(1, 3)
    judgement.resume(Fitness.DOWN, 5.0, "connect")
    assert not judgement.heard("connect", 9.0)
    assert (judgement.state, judgement.since) == (Fitness.DOWN, 5.0)
    assert judgement.heard("", 10.0)
    assert (judgement.state, judgement.since, judgement.why) == (Fitness.READY, 10.0, "")
