"""A llama.cpp server (``llama-server``): its OpenAI dialect, and its slots.

A slot keeps what it read, and a request that is pinned to a busy one waits for it.  Where ``slots``
says how many there are, the host keeps an account of them: who is in a slot is a share
(``shm.shares``), so it is exact over all workers and gone with one that dies; whose conversation it
holds is a row of the ledger.  A call of a session goes to the slot that has its conversation while
that is idle, else to the idle one not used for longest; when its own is busy, when none is idle, or
when others use the server too, the server chooses.

``row slot:BACKEND:N``: cells 0 the session (48 bits of a hash; 0: none), 1 when it was last given.

Invariants: a slot is given to one call of the host at a time, and given back however that ends.
Known weakness: that the server has so many slots is believed; it takes a larger number for another.
"""

from __future__ import annotations

from hashlib import blake2b
from typing import Annotated, Final

from msgspec import Meta

from tpo_mp.errors import TpoError
from tpo_mp.pipeline.endings import when_over
from tpo_mp.pipeline.engine_loads import EngineLoads
from tpo_mp.pipeline.promise import Promise
from tpo_mp.ports import Cells, Env, Feature, Share
from tpo_mp.types import Call, Dialect, Reply

from .openai_engine import EngineClient, EngineClientConfig

MOST_SLOTS: Final = 64
_SESSION_BYTES: Final = 6
_PINNED: Final = (Dialect.OPENAI_CHAT, Dialect.OPENAI_COMPLETIONS)


class Config(EngineClientConfig, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Options of a backend of kind ``llama_cpp``."""

    base_url: Annotated[str, Meta(description="Where the API lives, version path included.")] = (
        "http://localhost:8080/v1"
    )
    slots: Annotated[
        int,
        Meta(
            ge=0,
            le=MOST_SLOTS,
            description="Slots of the server (-np), to keep sessions in theirs; 0: it chooses.",
        ),
    ] = 0


class Slots:
    """The slots of one server, as the host uses them."""

    def __init__(self, name: str, count: int, env: Env) -> None:
        self._rows = [f"slot:{name}:{n}" for n in range(count)]
        self._shares: list[Share] = [env.shares.of(row) for row in self._rows]
        self._ledger = env.ledger
        self._watch = env.ledger.watch(*self._rows)
        self._clock = env.clock

    def take(self, session: int) -> int | None:
        """A slot for a call; ``None``: the server chooses."""
        held = self._watch.peek()
        mine = [n for n, cells in enumerate(held) if session and cells[0] == session]
        if mine:
            return self._claim(mine[0], session)
        idle = [n for n, share in enumerate(self._shares) if not share.total()]
        if not idle:
            return None
        return self._claim(min(idle, key=lambda n: held[n][1]), session)

    def give(self, slot: int) -> None:
        """Its call is over."""
        self._shares[slot].give(1)

    def _claim(self, slot: int, session: int) -> int | None:
        share = self._shares[slot]
        if share.total() or not share.take(1, 1):
            return None
        now = self._clock()

        def put(_: Cells) -> Cells:
            return (float(session), now, 0.0, 0.0)

        try:
            self._ledger.update(self._rows[slot], put)
        except TpoError:
            share.give(1)
            return None
        return slot


class LlamaCppBackend(EngineClient):
    """One llama.cpp server."""

    def __init__(self, config: Config, env: Env) -> None:
        super().__init__(config, env)
        self._slots = Slots(config.name, config.slots, env) if config.slots else None
        self._engines = EngineLoads(env)
        self._slot: int | None = None

    def send(self, call: Call) -> Promise[Reply]:
        """Send the call, in a slot where there is one for it."""
        slots = self._slots
        said = self._engines.of(self.name)
        alone = said is None or not said.others
        slot = None
        if slots is not None and alone and call.dialect in _PINNED:
            slot = slots.take(_session(call))
        if slots is None or slot is None:
            self._slot = None
            return super().send(call)
        self._slot = slot
        try:
            promise = super().send(call)
        except BaseException:
            slots.give(slot)
            raise
        promise.then(_Giving(slots, slot))
        return promise

    def fields(self, call: Call) -> dict[str, object]:  # noqa: ARG002 - the slot is the call's
        """Which slot it is for."""
        return {} if self._slot is None else {"id_slot": self._slot}


class _Giving:
    """Gives a slot back when its call is over."""

    __slots__ = ("_slot", "_slots")

    def __init__(self, slots: Slots, slot: int) -> None:
        self._slots = slots
        self._slot = slot

    def __call__(self, reply: Reply | None, error: BaseException | None) -> None:  # noqa: ARG002
        if reply is None:
            self._slots.give(self._slot)
        else:
            when_over(reply, self._over)

    def _over(self, error: TpoError | None) -> None:  # noqa: ARG002
        self._slots.give(self._slot)


def _session(call: Call) -> int:
    """The session as a number; 0: it has none."""
    if not call.affinity:
        return 0
    named = f"{call.tenant}\0{call.affinity}".encode("utf-8", "surrogatepass")
    return int.from_bytes(blake2b(named, digest_size=_SESSION_BYTES).digest(), "little")


FEATURE = Feature(Config, LlamaCppBackend)
