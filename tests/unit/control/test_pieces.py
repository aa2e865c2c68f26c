"""Values that arrive in pieces."""

from __future__ import annotations

from tpo_mp.control import pieces
from tpo_mp.control.pieces import Pieces


def test_a_whole_value_passes_through() -> None:
    """No piece, no memory."""
    assert Pieces().add("k", b"whole", more=False) == b"whole"


def test_pieces_of_several_values_do_not_mix() -> None:
    """Keys keep them apart."""
    held = Pieces()
    assert held.add("a", b"1", more=True) is None
    assert held.add("b", b"x", more=True) is None
    assert held.add("a", b"2", more=False) == b"12"
    assert held.add("b", b"y", more=False) == b"xy"
    assert held.add("a", b"3", more=False) == b"3"


def test_too_many_halves_cost_the_oldest() -> None:
    """The number of incomplete values is bounded."""
    held = Pieces()
    for n in range(pieces.MAX_OPEN + 5):
        held.add(n, b"x", more=True)
    assert held.given_up == 5
    assert held.add(pieces.MAX_OPEN + 4, b"y", more=False) == b"xy"
    assert held.add(0, b"y", more=False) == b"y"


def test_an_endless_value_is_given_up() -> None:
    """One value cannot take all memory."""
    held = Pieces()
    piece = bytes(8 << 20)
    for _ in range(6):
        held.add("k", piece, more=True)
    assert held.given_up == 1
