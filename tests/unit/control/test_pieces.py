"""Values that arrive in pieces."""

from __future__ import annotations

import pytest

from tpo_mp.control import pieces
from tpo_mp.control.pieces import Lost, Pieces


def test_a_whole_value_passes_through() -> None:
    """No piece, no memory."""
    assert Pieces().add("k", b"whole", more=False, at=0) == b"whole"


def test_pieces_of_several_values_do_not_mix() -> None:
    """Keys keep them apart."""
    held = Pieces()
    assert held.add("a", b"1", more=True, at=0) is None
    assert held.add("b", b"x", more=True, at=0) is None
    assert held.add("a", b"2", more=False, at=1) == b"12"
    assert held.add("b", b"y", more=False, at=1) == b"xy"
    assert held.add("a", b"3", more=False, at=0) == b"3"


def test_too_many_halves_cost_the_oldest() -> None:
    """The number of incomplete values is bounded; the rest of one given up is not a value."""
    held = Pieces()
    for n in range(pieces.MAX_OPEN + 5):
        held.add(n, b"x", more=True, at=0)
    assert held.add(pieces.MAX_OPEN + 4, b"y", more=False, at=1) == b"xy"
    for n in range(5):
        assert held.add(n, b"y", more=True, at=1) is None
        with pytest.raises(Lost):
            held.add(n, b"z", more=False, at=2)
    assert held.given_up == 5


def test_an_endless_value_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """One value cannot take all memory, and nothing of it passes for a whole one."""
    monkeypatch.setattr(pieces, "MAX_VALUE", 40)
    held = Pieces()
    for n in range(6):
        assert held.add("k", bytes(8), more=True, at=8 * n) is None
    with pytest.raises(Lost):
        held.add("k", b"end", more=False, at=48)
    assert held.given_up == 1
    assert held.add("k", b"next", more=False, at=0) == b"next"


def test_of_a_value_that_is_sent_again_the_first_attempt_is_forgotten() -> None:
    """A sender that begins anew begins at 0."""
    held = Pieces()
    held.add("k", b"old", more=True, at=0)
    held.add("k", b"ne", more=True, at=0)
    assert held.add("k", b"w", more=False, at=2) == b"new"
    assert held.given_up == 0


def test_a_value_whose_beginning_another_process_took_is_lost() -> None:
    """Control was started anew between two pieces."""
    held = Pieces()
    with pytest.raises(Lost):
        held.add("k", b"end", more=False, at=5)
