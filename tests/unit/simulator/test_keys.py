"""Keys: known or not, and named without being told."""

from __future__ import annotations

import pytest

from tpo_mp.config.values import Secret
from tpo_mp.simulator.keys import KnownKeys, key_name, key_of


@pytest.mark.parametrize(
    ("header", "key"),
    [(b"Bearer sk-1", b"sk-1"), (b"bearer  sk-1 ", b"sk-1"), (b"sk-1", b"sk-1"), (None, b"")],
)
def test_key_is_what_the_header_carries(header: bytes | None, key: bytes) -> None:
    """With or without its scheme."""
    assert key_of(header) == key


def test_only_known_keys_are_known() -> None:
    """Whole, and none is none."""
    keys = KnownKeys([Secret("sk-1"), Secret("sk-2")])
    assert keys.knows(b"Bearer sk-1")
    assert keys.knows(b"Bearer sk-2")
    for other in (b"Bearer sk-", b"Bearer sk-11", b"Bearer", None):
        assert not keys.knows(other)


def test_a_name_tells_keys_apart_and_not_the_key() -> None:
    """The same key has the same name; no key has none."""
    names = {key_name(b"Bearer sk-%d" % n) for n in range(50)}
    assert len(names) == 50
    assert not any("sk-" in name for name in names)
    assert key_name(None) == ""
