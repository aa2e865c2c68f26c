"""How answers of a backend become a state."""

from __future__ import annotations

import pytest

from tpo_mp.control.verdicts import LOADING, Verdict
from tpo_mp.shm.standing import Standing

GOOD, BAD = "", "status"


def after(*answers: str, rise: int = 2, fall: int = 3) -> Standing:
    """The state after these."""
    verdict = Verdict(rise, fall)
    for at, why in enumerate(answers):
        verdict.heard(why, float(at))
    return verdict.state


@pytest.mark.parametrize(
    ("answers", "state"),
    [
        ((), Standing.UNKNOWN),
        ((GOOD,), Standing.READY),
        ((BAD,), Standing.STARTING),
        ((BAD, BAD, BAD), Standing.DOWN),
        ((LOADING,) * 9, Standing.STARTING),
        ((BAD, GOOD), Standing.READY),
        ((GOOD, BAD, BAD, GOOD, BAD, BAD), Standing.READY),
        ((GOOD, BAD, BAD, BAD), Standing.DOWN),
        ((GOOD, LOADING, LOADING), Standing.READY),
        ((GOOD, LOADING, LOADING, LOADING), Standing.STARTING),
        ((GOOD, BAD, BAD, BAD, LOADING), Standing.STARTING),
        ((GOOD, BAD, BAD, BAD, GOOD), Standing.DOWN),
        ((GOOD, BAD, BAD, BAD, GOOD, GOOD), Standing.READY),
    ],
)
def test_states(answers: tuple[str, ...], state: Standing) -> None:
    """Two good answers bring one back that was down, three bad ones take a ready one away."""
    assert after(*answers) is state


def test_it_goes_on_where_the_process_before_stopped() -> None:
    """And says since when it is so."""
    verdict = Verdict(1, 3)
    verdict.resume(Standing.DOWN, 5.0, "connect")
    assert not verdict.heard("connect", 9.0)
    assert (verdict.state, verdict.since) == (Standing.DOWN, 5.0)
    assert verdict.heard("", 10.0)
    assert (verdict.state, verdict.since, verdict.why) == (Standing.READY, 10.0, "")
