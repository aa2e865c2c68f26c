"""API keys: their form, and the digest they are kept as."""

from __future__ import annotations

import hashlib
import hmac

import pytest

from tpo_mp.config.api_keys import SECRET_CHARACTERS, digest, is_damaged, new_key


def test_a_new_key_names_its_id_and_is_never_the_same() -> None:
    """The prefix and the id are for people and secret scanners."""
    first, second = new_key("team-a"), new_key("team-a")
    assert first.startswith("tpo_team-a_")
    assert first != second
    assert len(first.split("_")[2]) == SECRET_CHARACTERS
    assert not is_damaged(first)


@pytest.mark.parametrize("change", [lambda k: k[:-1], lambda k: k[:-1] + "g", lambda k: k + "0",
                                    lambda k: k.replace("team", "tame")])  # fmt: skip
def test_a_key_that_lost_or_changed_a_character_is_known(change: object) -> None:
    """Copying goes wrong before anything else does."""
    assert callable(change)
    assert is_damaged(change(new_key("team-a")))


def test_another_secret_is_never_damaged() -> None:
    """Operators may bring keys of their own."""
    assert not is_damaged("sk-0123456789abcdef")
    assert not is_damaged("tpo_short")


def test_the_digest_is_hmac_sha256_under_the_pepper() -> None:
    """Another pepper, another digest; without one it can still be computed anywhere."""
    assert digest(b"key", b"pepper") == hmac.new(b"pepper", b"key", hashlib.sha256).digest()
    assert digest(b"key", b"") != digest(b"key", b"pepper")
