"""Sealed bodies: opened by their own key for their own call only; nothing else is taken for one."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tpo_mp.store.sealing import UNSEALED, Locked, Seals, is_sealed

FIRST, SECOND = "first " * 6, "second " * 6


@given(st.binary(max_size=300), st.binary(max_size=20))
def test_what_is_sealed_comes_back(plain: bytes, about: bytes) -> None:
    """Whatever it was; nothing of it is to be read before."""
    seals = Seals([FIRST])
    sealed = seals.seal(plain, about)
    assert is_sealed(sealed)
    assert seals.open(sealed, about) == plain
    assert len(plain) < 8 or plain not in sealed
    assert sealed != seals.seal(plain, about), "no nonce is used twice"


def test_another_key_another_call_or_a_changed_byte_opens_nothing() -> None:
    """Each is locked, wherever the byte is that was changed."""
    sealed = Seals([FIRST]).seal(b"what somebody said", b"call")
    for seals, about in ((Seals([SECOND]), b"call"), (UNSEALED, b"call"), (Seals([FIRST]), b"x")):
        with pytest.raises(Locked):
            seals.open(sealed, about)
    for at in range(2, len(sealed)):
        changed = bytearray(sealed)
        changed[at] ^= 1
        with pytest.raises(Locked):
            Seals([FIRST]).open(bytes(changed), b"call")


def test_a_new_key_in_front_seals_and_the_old_one_still_opens() -> None:
    """Until it is taken away."""
    old = Seals([FIRST]).seal(b"x", b"")
    both = Seals([SECOND, FIRST])
    new = both.seal(b"y", b"")
    assert (both.open(old, b""), both.open(new, b"")) == (b"x", b"y")
    assert Seals([SECOND]).open(new, b"") == b"y"
    assert not Seals([SECOND]).has_key_of(old)
    assert Seals([SECOND]).has_key_of(new)


@given(st.text().map(str.encode))
def test_text_of_the_time_before_stays_text(plain: bytes) -> None:
    """No text looks sealed; without a key nothing is sealed."""
    assert Seals([FIRST]).open(plain, b"") == plain
    assert UNSEALED.seal(plain, b"") == plain
    assert not UNSEALED


def test_seals_are_what_their_secrets_are() -> None:
    """So that a reload that changes nothing writes nothing anew."""
    assert Seals([FIRST]) == Seals([FIRST])
    assert Seals([FIRST, SECOND]) != Seals([SECOND, FIRST])
