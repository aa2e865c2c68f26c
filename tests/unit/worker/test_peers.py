"""Messages between features of two workers, over real rings."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.fake_shards import FakeHost
from tpo_mp.errors import ConfigError


@pytest.fixture
def host() -> Iterator[FakeHost]:
    """Two workers."""
    made = FakeHost(2)
    yield made
    made.close()


def test_message_reaches_who_listens_on_its_topic(host: FakeHost) -> None:
    """With the seat it came from; on another topic, or after listening ended, nobody hears it."""
    here, there = host.shards
    heard: list[tuple[int, bytes]] = []
    there.peers.listen("a", lambda seat, message: heard.append((seat, message)))
    assert here.peers.tell(1, "a", b"one")
    assert here.peers.tell(1, "b", b"two")
    host.pump()
    assert heard == [(0, b"one")]
    there.peers.listen("a", None)
    assert here.peers.tell(1, "a", b"three")
    host.pump()
    assert heard == [(0, b"one")]
    assert not there.crashes


def test_name_has_one_home_and_a_death_is_seen(host: FakeHost) -> None:
    """Both workers say the same seat; its life changes when its process does."""
    here, there = host.shards
    homes = {f"engine-{n}": here.peers.home(f"engine-{n}") for n in range(20)}
    assert set(homes.values()) == {0, 1}
    assert all(there.peers.home(name) == seat for name, seat in homes.items())
    life = here.peers.life_of(1)
    host.die(1)
    assert here.peers.life_of(1) != life


def test_message_longer_than_a_record_is_not_sent(host: FakeHost) -> None:
    """It never will fit; one of the most bytes does."""
    peers = host.shards[0].peers
    assert not peers.tell(1, "a", bytes(peers.most + 1))
    assert peers.tell(1, "a", bytes(peers.most))


def test_topics_of_one_number_do_not_mix(host: FakeHost) -> None:
    """The second is refused; listening again on the same one replaces who listened."""
    peers = host.shards[0].peers
    peers.listen("plumless", lambda *_: None)
    peers.listen("plumless", lambda *_: None)
    with pytest.raises(ConfigError, match="buckeroo"):
        peers.listen("buckeroo", lambda *_: None)  # the same CRC-32
