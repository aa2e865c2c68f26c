"""Messages between a feature here and the same feature in another worker; see ``ports.Peers``.

Invariants: a message on a topic nobody listens to is dropped; two topics of one process never have
the same number, the second to listen is refused.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from zlib import crc32

from tpo_mp.errors import ConfigError
from tpo_mp.shm.frames import HEAD, Kind
from tpo_mp.types import Call, Reply

from .courier import Courier
from .links import Links
from .placing import Placing


class ShardPeers:
    """The other workers as this one's features see them."""

    def __init__(self, links: Links, placing: Placing, seat: int) -> None:
        self._links = links
        self._placing = placing
        self._heard: dict[int, tuple[str, Callable[[int, bytes], None]]] = {}
        self.here = seat
        self.most = links.max_record - HEAD.size
        self.courier: Courier

    def home(self, key: str) -> int:
        """The seat that serves this name."""
        return self._placing.seat_of("", key)

    def life_of(self, seat: int) -> tuple[int, int]:
        """Epoch and pid of the seat's occupant."""
        return self._links.life_of(seat)

    def listen(self, topic: str, take: Callable[[int, bytes], None] | None) -> None:
        """Hear a topic, or no more."""
        number = crc32(topic.encode())
        if take is None:
            self._heard.pop(number, None)
            return
        if self._heard.get(number, (topic, take))[0] != topic:
            raise ConfigError(f"{topic!r} needs another name: its number is taken")
        self._heard[number] = (topic, take)

    def tell(self, seat: int, topic: str, message: bytes) -> bool:
        """Send a message."""
        if len(message) > self.most:
            return False
        return self._links.push(seat, HEAD.pack(Kind.PEER, crc32(topic.encode())), message)

    def bring(
        self,
        call: Call,
        key: bytes,
        epoch: int,
        sure: bool,
        here: Callable[[Call], Awaitable[Reply]],
    ) -> Awaitable[Reply] | None:
        """Have a call answered where its key lives."""
        return self.courier.bring(call, key, epoch, sure, here)

    def lead(self, key: bytes) -> None:
        """A key that lives nowhere shall live here."""
        self.courier.lead(key)

    def leave(self, key: bytes) -> None:
        """A key lives here no more."""
        self.courier.leave(key)

    def take(self, source: int, kind: int, number: int, payload: memoryview) -> bool:
        """Hand a message to who listens; answers whether the record was one."""
        if kind != Kind.PEER:
            return False
        heard = self._heard.get(number)
        if heard is not None:
            heard[1](source, bytes(payload))
        return True
