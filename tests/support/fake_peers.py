"""The workers of one host as features see each other, with a wire that a test may cut."""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable

from tpo_mp.types import Call, Reply


class FakeWire:
    """Messages between seats, delivered by ``pump``; ``lose`` of them vanish."""

    def __init__(self, seats: int) -> None:
        self.lives = [(1, 100 + seat) for seat in range(seats)]
        self.listeners: list[dict[str, Callable[[int, bytes], None]]] = [{} for _ in range(seats)]
        self.queue: deque[tuple[int, int, str, bytes]] = deque()
        self.homes: dict[str, int] = {}
        self.default_home = 0
        self.lose = 0
        self.full = False

    def peers(self, seat: int) -> FakePeers:
        """What the features of one seat get."""
        return FakePeers(self, seat)

    def pump(self) -> None:
        """Deliver until nothing is left."""
        while self.queue:
            source, seat, topic, message = self.queue.popleft()
            take = self.listeners[seat].get(topic)
            if take is not None:
                take(source, message)

    def die(self, seat: int, home: int) -> None:
        """A seat's process dies, another takes the seat; what lived there has another home."""
        epoch, pid = self.lives[seat]
        self.lives[seat] = (epoch + 1, pid + 100)
        self.listeners[seat].clear()
        self.queue = deque(m for m in self.queue if seat not in m[:2])
        self.default_home = home


class FakePeers:
    """One seat's side; implements ``ports.Peers``."""

    most = 4096

    def __init__(self, wire: FakeWire, seat: int) -> None:
        self._wire = wire
        self.here = seat

    def home(self, key: str) -> int:
        """Where a test put it."""
        return self._wire.homes.get(key, self._wire.default_home)

    def life_of(self, seat: int) -> tuple[int, int]:
        """Changes by ``die``."""
        return self._wire.lives[seat]

    def listen(self, topic: str, take: Callable[[int, bytes], None] | None) -> None:
        """Hear a topic, or no more."""
        if take is None:
            self._wire.listeners[self.here].pop(topic, None)
        else:
            self._wire.listeners[self.here][topic] = take

    def tell(self, seat: int, topic: str, message: bytes) -> bool:
        """Put a message on the wire."""
        if self._wire.full or len(message) > self.most:
            return False
        if self._wire.lose:
            self._wire.lose -= 1
            return True
        self._wire.queue.append((self.here, seat, topic, message))
        return True

    def bring(
        self,
        call: Call,
        key: bytes,
        epoch: int,
        sure: bool,
        here: Callable[[Call], Awaitable[Reply]],
    ) -> Awaitable[Reply] | None:
        """Every key lives where it is asked for."""
        return None

    def lead(self, key: bytes) -> None:
        """It does."""

    def leave(self, key: bytes) -> None:
        """Nobody else has it."""
