"""What a process gives the features that run in it: metrics, a store, the host's shared rows.

Each is a protocol, so that a feature's unit tests need no process; ``Env`` in ``ports`` names them
all.  ``Unscored``, ``Alone`` and ``Unpriced`` stand where a process was given none.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import Protocol, TypeAlias, TypeVar

from .types import Call, Quota, QuotaReading, QuotaUse, Reply, TryTally

T = TypeVar("T")


class Counter(Protocol):
    """A monotonic series this process owns."""

    def inc(self, n: int = 1) -> None: ...


class Gauge(Protocol):
    """A level this process owns."""

    def set(self, value: float) -> None: ...

    def add(self, n: float) -> None: ...


class Histogram(Protocol):
    """A distribution this process owns; values in seconds unless its name says otherwise."""

    def observe(self, value: float) -> None: ...


class Metrics(Protocol):
    """Makes series; asking twice for the same one answers the same one."""

    def counter(self, name: str, help: str, **labels: str) -> Counter: ...

    def money(self, name: str, help: str, **labels: str) -> Counter:
        """A counter of dollars, which counts their billionths."""
        ...

    def gauge(self, name: str, help: str, **labels: str) -> Gauge: ...

    def histogram(
        self, name: str, help: str, buckets: Sequence[float], **labels: str
    ) -> Histogram: ...


class Store(Protocol):
    """Durable records, kept by control; every answer comes within ``wait_s`` or is ``None``."""

    async def get(self, table: str, key: str, wait_s: float = 0.05) -> bytes | None: ...

    async def put(
        self, table: str, key: str, value: bytes, ttl_s: float, wait_s: float = 0.05
    ) -> bool: ...

    async def post(
        self, table: str, key: str, value: bytes, *, ttl_s: float = 0.0, wait_s: float = 0.05
    ) -> tuple[bytes | None] | None:
        """A 1-tuple of what control says to a value, or ``None`` when it did not take it."""
        ...


Cells: TypeAlias = tuple[float, float, float, float]
"""The numbers of one name in the ledger."""


class Watch(Protocol):
    """Some names of the ledger, read without a lock."""

    def peek(self) -> tuple[Cells, ...]:
        """Their numbers, in the order they were asked for; below a microsecond.

        The very same tuple as before while none of them has changed.
        """
        ...


class Ledger(Protocol):
    """Numbers that all processes of a host share, by name; exact, and bounded in number.

    A name begins with whose it is (``"fault:rule-3"``).  Its numbers are zeros at first and outlive
    every process but the supervisor.  Names that clients bring are the ``crowd``: they share a
    bounded number of places among themselves, and the one not used for longest gives way.

    Raises ``Shed`` when another process was stopped in the middle of the same update.
    """

    def ordinal(self, name: str, *, crowd: bool = False) -> int:
        """Count one more ``name`` on this host and tell which it is; 1 is the first."""
        ...

    def update(self, name: str, change: Callable[[Cells], Cells], *, crowd: bool = False) -> Cells:
        """Change a name's numbers in one step; answer what they became.

        ``change`` is short and pure: others wait for it.
        """
        ...

    def look(self, name: str, *, crowd: bool = False) -> Cells:
        """A name's numbers without a lock and without giving it a place; zeros if it has none."""
        ...

    def watch(self, *names: str, crowd: Sequence[str] = ()) -> Watch:
        """Names whose numbers are looked at far more often than they change; ``crowd`` last."""
        ...


class Quotas(Protocol):
    """Use of limits by name, with what each process holds of it; exact and bounded like ``Ledger``.

    What a process holds comes back when it dies.  ``sharers`` is how many processes serve.
    Raises ``Shed`` when a name cannot be asked now.
    """

    sharers: int

    def update(self, name: str, change: Callable[[Quota], T], *, crowd: bool = False) -> T:
        """Change a name's use in one step and answer what ``change`` does.

        ``change`` is short and pure but for its argument: others wait for it.  When it raises,
        nothing changes.
        """
        ...

    def look(self, name: str, *, crowd: bool = False) -> QuotaUse | None:
        """What is used of a name, without giving it a place; ``None``: it has none."""
        ...

    @property
    def rows(self) -> int:
        """How many names there is room for."""
        ...

    def readings(self, first: int, rows: int) -> Iterator[QuotaReading]:
        """Names in so many rows, for people: counts that are being changed may not fit together."""
        ...


class Live(Protocol):
    """One small text (at most 64 KiB) that all processes of a host share and any may replace."""

    @property
    def version(self) -> int:
        """Grows with every change; 0: there is no text yet.  Reading it costs one word."""
        ...

    def read(self) -> tuple[int, bytes]:
        """The text and its version."""
        ...

    def replace(self, seen: int, text: bytes) -> bool:
        """Put ``text`` in the place of version ``seen``, as a whole.

        False: it is not that version any more, or just being replaced; read it again.
        Raises ``TooLarge``.
        """
        ...


class Journal(Protocol):
    """A bounded log of the host: the newest entries of all its processes (1 MiB of them)."""

    def append(self, entry: bytes) -> bool:
        """Add an entry; False when it could not be kept."""
        ...

    def entries(self) -> Iterator[bytes]:
        """Every entry there is now, oldest first; raises ``Shed``.

        The copy is made at once; going through it may take milliseconds, in any thread.
        """
        ...

    def clear(self) -> None:
        """Forget every entry; raises ``Shed``."""
        ...


class Share(Protocol):
    """How much of one thing each process of the host holds, by seat; see ``shm.shares``.

    A process's part is gone with the process.
    """

    @property
    def held(self) -> int:
        """What this process holds."""
        ...

    @property
    def wanted(self) -> int:
        """How many wait for it: a hint, kept by whoever keeps their queue."""
        ...

    @wanted.setter
    def wanted(self, n: int) -> None: ...

    @property
    def limit(self) -> int:
        """How much of it there is, where the host finds that out itself; 0: nobody said yet."""
        ...

    @limit.setter
    def limit(self, n: int) -> None: ...

    def total(self) -> int:
        """What all living processes hold."""
        ...

    def take(self, n: int, limit: int) -> int:
        """Take up to ``n`` of what all leave of ``limit``; answers how many, 0 when in doubt."""
        ...

    def add(self, n: int) -> None:
        """Hold more without asking: another process keeps it for this one."""
        ...

    def give(self, n: int) -> None:
        """Give back; never more than is held."""
        ...


class Shares(Protocol):
    """The things that processes of the host have shares of, by name (at most 1 024 of them)."""

    def of(self, name: str) -> Share:
        """One of them; raises ``ConfigError`` at the cap."""
        ...


class Score(Protocol):
    """How tries of one target end, on the whole host; instants are ``Env.clock``'s."""

    def good(self, took_s: float, now: float) -> None:
        """A try was answered, after ``took_s`` to the first byte."""
        ...

    def bad(self, reason: str, now: float) -> None:
        """A try failed, and the backend is to blame."""
        ...

    def busy(self, now: float) -> None:
        """It had no room for a try."""
        ...

    def refused(self, now: float) -> None:
        """It refused our key."""
        ...

    def total(self) -> TryTally:
        """All that was counted since the host started."""
        ...

    def recent(self, now: float, slices: int = 6) -> TryTally:
        """What was counted in the last ten minutes times ``slices``; up to ten minutes less."""
        ...

    def last_good_at(self) -> float:
        """When one was last answered; 0: never."""
        ...

    def last_bad(self) -> tuple[float, str]:
        """When one last failed, and why; 0: never."""
        ...


class Scores(Protocol):
    """The scores of the host, by target (at most 256 of them); see ``shm.scores``."""

    def of(self, name: str) -> Score | None:
        """One of them; ``None`` when there is no room for it."""
        ...


class Unscored:
    """The ``Scores`` of a process that keeps none."""

    def of(self, name: str) -> Score | None:  # noqa: ARG002
        """There is no room."""
        return None


class Prefixes(Protocol):
    """Which backends were sent the beginnings of which prompts, on the whole host; a hint."""

    def number(self, name: str) -> int:
        """The number of a backend; 0: there is none for it."""
        ...

    def find(self, blocks: Sequence[bytes]) -> tuple[int, tuple[int, ...]]:
        """How many blocks from the first on are known, and the numbers of who was sent them."""
        ...

    def record(self, blocks: Sequence[bytes], number: int, known: int = 0) -> None:
        """A backend is sent these blocks; ``known`` of them were found with it just now."""
        ...


class NoPrefixes:
    """The ``Prefixes`` of a process that keeps none."""

    def number(self, name: str) -> int:  # noqa: ARG002
        """Nobody has one."""
        return 0

    def find(self, blocks: Sequence[bytes]) -> tuple[int, tuple[int, ...]]:  # noqa: ARG002
        """Nothing is known."""
        return 0, ()

    def record(self, blocks: Sequence[bytes], number: int, known: int = 0) -> None:
        """It is forgotten."""


class Peers(Protocol):
    """The processes of this host that serve, by seat, and small messages between their features.

    A message may be lost when a process dies or its ring is full; whoever needs it asks again.
    """

    @property
    def here(self) -> int:
        """This process's seat."""
        ...

    @property
    def most(self) -> int:
        """Bytes of the longest message there can be."""
        ...

    def home(self, key: str) -> int:
        """The seat where what has this name lives now.

        All processes answer the same, but for the moment in which one is replaced.
        """
        ...

    def life_of(self, seat: int) -> tuple[int, int]:
        """What changes when the seat's process does."""
        ...

    def listen(self, topic: str, take: Callable[[int, bytes], None] | None) -> None:
        """Hear what other seats say on a topic: ``take(seat, message)``; ``None``: no more."""
        ...

    def tell(self, seat: int, topic: str, message: bytes) -> bool:
        """Say something to another seat; ``False``: there is no room for it now."""
        ...

    def bring(
        self,
        call: Call,
        key: bytes,
        epoch: int,
        sure: bool,
        here: Callable[[Call], Awaitable[Reply]],
    ) -> Awaitable[Reply] | None:
        """Have a call answered by the seat where ``key`` lives; ``None``: that is this one.

        A key lives where it was first asked for, until that seat leaves it.  There it meets the
        ``join(key, call)`` of the stage that has one, under config ``epoch``.  It is brought again
        when that seat dies: to the next, or to ``here``.  ``sure`` says that the answer is the same
        each time, so that a stream may go on where it broke off.  ``here`` also serves a call whose
        key lived elsewhere, or here, until a moment ago.
        """
        ...

    def lead(self, key: bytes) -> None:
        """Have a key live here, if it lives nowhere."""
        ...

    def leave(self, key: bytes) -> None:
        """A key lives here no more: the next call of it may begin anywhere."""
        ...


class Alone:
    """The ``Peers`` of a process that has none."""

    here = 0
    most = 1 << 16

    def home(self, key: str) -> int:  # noqa: ARG002
        """Everything lives here."""
        return 0

    def life_of(self, seat: int) -> tuple[int, int]:  # noqa: ARG002
        """It never changes."""
        return (0, 0)

    def listen(self, topic: str, take: Callable[[int, bytes], None] | None) -> None:
        """Nobody speaks."""

    def tell(self, seat: int, topic: str, message: bytes) -> bool:  # noqa: ARG002
        """Nobody hears."""
        return False

    def bring(
        self,
        call: Call,  # noqa: ARG002
        key: bytes,  # noqa: ARG002
        epoch: int,  # noqa: ARG002
        sure: bool,  # noqa: ARG002
        here: Callable[[Call], Awaitable[Reply]],  # noqa: ARG002
    ) -> Awaitable[Reply] | None:
        """Every key lives here."""
        return None

    def lead(self, key: bytes) -> None:
        """It does."""

    def leave(self, key: bytes) -> None:
        """Nobody else could have it."""


class PriceList(Protocol):
    """What models cost."""

    def cost_usd(self, model: str, prompt: int, completion: int, cached: int = 0) -> float | None:
        """Dollars for a call's tokens; ``cached`` are a part of the prompt's.

        ``None``: nobody said a price of this model, or no tokens were reported (-1 each).  It is
        not 0, which is a price.
        """
        ...

    def saved_usd(self, model: str, prompt: int, completion: int) -> float | None:
        """Dollars that an answer with these tokens did not cost; ``None`` as in ``cost_usd``.

        There is one rule: what the same tokens cost when a backend is asked for all of them afresh.
        What was asked beside the answer would have been spent with it, too, and is not taken off.
        """
        ...


class Unpriced:
    """The ``PriceList`` of a process that was given none."""

    def cost_usd(
        self,
        model: str,  # noqa: ARG002
        prompt: int,  # noqa: ARG002
        completion: int,  # noqa: ARG002
        cached: int = 0,  # noqa: ARG002
    ) -> float | None:
        """No price is known."""
        return None

    def saved_usd(
        self,
        model: str,  # noqa: ARG002
        prompt: int,  # noqa: ARG002
        completion: int,  # noqa: ARG002
    ) -> float | None:
        """No price is known."""
        return None


class Timed(Protocol):
    """Something with a deadline in monotonic seconds (``inf``: none)."""

    deadline: float
    filed_at: float

    def expire(self) -> None: ...


class Timers(Protocol):
    """One timer for any number of deadlines; see ``http.wheel``."""

    def add(self, entry: Timed, now: float) -> None: ...


class WaitingRoom(Protocol):
    """The bounded queue in front of a stage; who waits holds one place."""

    def enter(self) -> bool: ...

    def leave(self) -> None: ...
