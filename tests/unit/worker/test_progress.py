"""How far each open stream has come, told by the beat, a bounded number of calls at a time."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from tpo_mp.worker.progress import MOST, Progress


def stream(slot: int, sent: int = 7, **fields: Any) -> Any:
    """An open call's delivery."""
    known = {"started": True, "settled": False, "call": SimpleNamespace(slot=slot)} | fields
    return SimpleNamespace(sent=lambda: sent, **known)


def test_only_streams_that_go_on_are_noted() -> None:
    """A call that has sent nothing, is over, or has no slot has no count to note."""
    noted: dict[int, int] = {}
    calls = [
        stream(0), stream(1, started=False), stream(2, settled=True), stream(-1), stream(4, -1)
    ]  # fmt: skip
    Progress(calls, noted.__setitem__).tick()
    assert noted == {0: 7, 4: -1}


def test_a_beat_looks_at_a_bounded_number_and_the_next_goes_on() -> None:
    """All are looked at in turn, the first again only after the last."""
    noted: list[int] = []
    progress = Progress([stream(n) for n in range(MOST + 10)], lambda slot, _: noted.append(slot))
    progress.tick()
    assert noted == list(range(MOST))
    progress.tick()
    assert noted[MOST : MOST + 10] == list(range(MOST, MOST + 10))
    assert noted[MOST + 10 :] == list(range(MOST - 10))


def test_calls_that_come_and_go_do_not_break_the_round() -> None:
    """The set changes between beats; who came is in the next round."""
    noted: list[int] = []
    calls: list[Any] = [stream(n) for n in range(MOST + 1)]
    progress = Progress(calls, lambda slot, _: noted.append(slot))
    progress.tick()
    calls[:] = [stream(9999)]
    progress.tick()
    assert noted[-1] == 9999
