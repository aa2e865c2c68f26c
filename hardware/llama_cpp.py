"""A llama.cpp server (``llama-server``): its OpenAI dialect, its own completions, and its slots.

A slot keeps what it read, and a request that is pinned to a busy one waits for it.  Where ``slots``
asks for it, the host keeps an account of as many as the server's ``/props`` says: who is in a slot
is a share (``shm.shares``), so it is exact over all workers and gone with one that dies; whose
conversation it holds is a row of the ledger.  A call of a session goes to the slot that has its
conversation while that is idle, else to the idle one not used for longest.  Where its own is busy
it waits for that if reading the conversation anew would take longer than the call there is likely
to; otherwise, when none is idle, or when others use the server too, the server chooses.

``row slot:BACKEND:N``: cells 0 the session (48 bits of a hash; 0: none), 1 when it was last given,
2 the tokens it holds, 3 for how long its calls have it, in seconds (a moving mean).  How long a
token of a prompt takes each worker learns from how long the first bytes of its streams take.

Invariants: a slot is given to one call of the host at a time and to one that waits for it, and
given back however they end.
Known weakness: where ``/props`` cannot be read, that the server has so many slots as configured is
believed; it takes a larger number for another.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from hashlib import blake2b
from typing import Annotated, ClassVar, Final, Literal

from msgspec import Meta

from tpo_mp.errors import TpoError
from tpo_mp.pipeline.endings import when_over
from tpo_mp.pipeline.engine_loads import EngineLoads
from tpo_mp.pipeline.promise import Promise
from tpo_mp.ports import Cells, Env, Feature, Share
from tpo_mp.shm.engine_load import NONE_KEPT
from tpo_mp.types import Call, Dialect, Reply

from . import llama_completion
from .openai_engine import EngineClient, EngineClientConfig

MOST_SLOTS: Final = 64
AGAIN_S: Final = 1.0
"""After that long lines for slots are asked for again where there were none."""
_SESSION_BYTES: Final = 6
_ALPHA: Final = 0.2
_LEARNT_TOKENS: Final = 32
"""A prompt with fewer new tokens tells little of what one takes."""
_PINNED: Final = (Dialect.OPENAI_CHAT, Dialect.OPENAI_COMPLETIONS)


class Config(EngineClientConfig, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Options of a backend of kind ``llama_cpp``."""

    OWN_API: ClassVar[str] = "completion"

    base_url: Annotated[str, Meta(description="Where the API lives, version path included.")] = (
        "http://localhost:8080/v1"
    )
    stream_unary: Annotated[
        bool,
        Meta(
            description="Ask for whole replies as streams and put them together: it takes seconds "
            "to see that a client left who wants the whole; calls for log probabilities excepted."
        ),
    ] = True
    slots: Annotated[
        Annotated[int, Meta(ge=0, le=MOST_SLOTS)] | Literal["auto"],
        Meta(
            description="Slots of the server (-np), to keep sessions in theirs, at most as many as "
            "its /props says; auto: as many as that says, while its metrics say that nobody else "
            "uses it and its /slots does not show that it empties idle ones (one context for all, "
            "the default without -np); 0: it chooses. An engine of this host with a number of "
            "slots (-np) in its args gets auto.",
        ),
    ] = 0

    def native_sampling(self) -> Mapping[str, object]:
        """Its prompts have no template, so an answer ends where the next question would begin."""
        if self.OWN_API not in self.apis:
            return {}
        return {"temperature": 0.8, "stop": ["</s>", "Human:"]}

    def slots_page(self) -> str:
        """Where the server says how many there are."""
        return "/props" if self.slots else ""

    def held_page(self) -> str:
        """Where the server says what they hold."""
        return "/slots" if self.slots == "auto" else ""

    def problems(self) -> Iterable[tuple[str, str]]:
        """Slots nobody can know to be ours alone, besides what is wrong with any engine."""
        yield from super().problems()
        if self.slots == "auto" and self.metrics_path == "":
            yield "slots", "'auto' needs metrics_path: they tell whether others use the server"


class Slots:
    """The slots of one server, as the host uses them."""

    def __init__(self, name: str, count: int, env: Env) -> None:
        self._rows = [f"slot:{name}:{n}" for n in range(count)]
        self._shares: list[Share] = [env.shares.of(row) for row in self._rows]
        self._ledger = env.ledger
        self._watch = env.ledger.watch(*self._rows)
        self._clock = env.clock
        self._token_s = 0.0

    def take(self, session: int) -> int | None:
        """A slot for a call; ``None``: the server chooses."""
        held = self._watch.peek()
        mine = [n for n, cells in enumerate(held) if session and cells[0] == session]
        if mine:
            # One may wait for the call that is there, where that pays.
            return self._claim(mine[0], session, 2 if self._pays(held[mine[0]]) else 1)
        idle = [n for n, share in enumerate(self._shares) if not share.total()]
        if not idle:
            return None
        return self._claim(min(idle, key=lambda n: held[n][1]), session, 1)

    def give(self, slot: int) -> None:
        """Its call is over."""
        self._shares[slot].give(1)

    def learn(self, new_tokens: int, took_s: float) -> None:
        """A stream began ``took_s`` after it was sent; so many tokens of its prompt were new."""
        if new_tokens >= _LEARNT_TOKENS:
            token_s = took_s / new_tokens
            self._token_s += (token_s - self._token_s) * (_ALPHA if self._token_s else 1.0)

    def note(self, slot: int, session: int, tokens: int, took_s: float) -> None:
        """A call of the session is over; the slot holds so many tokens of it."""

        def put(cells: Cells) -> Cells:
            known_s = cells[3] + (took_s - cells[3]) * (_ALPHA if cells[3] else 1.0)
            return (cells[0], cells[1], float(tokens) if cells[0] == session else 0.0, known_s)

        with suppress(TpoError):
            self._ledger.update(self._rows[slot], put)

    def _pays(self, cells: Cells) -> bool:
        """Whether the call in a slot is likely to end before its tokens could be read elsewhere."""
        _, given_at, tokens, usual_s = cells
        left_s = usual_s - (self._clock() - given_at)
        # One that is late already may take as long again.
        return tokens * self._token_s > (left_s if left_s > 0 else usual_s) > 0

    def _claim(self, slot: int, session: int, most: int) -> int | None:
        share = self._shares[slot]
        if share.total() >= most or not share.take(1, most):
            return None
        now = self._clock()

        def put(cells: Cells) -> Cells:
            tokens = cells[2] if cells[0] == session else 0.0
            return (float(session), now, tokens, cells[3])

        try:
            self._ledger.update(self._rows[slot], put)
        except TpoError:
            share.give(1)
            return None
        return slot


class LlamaCppBackend(EngineClient):
    """One llama.cpp server."""

    OWN: ClassVar = (llama_completion.PATH, llama_completion.LlamaCompletion)

    def __init__(self, config: Config, env: Env) -> None:
        super().__init__(config, env)
        self._auto = config.slots == "auto"
        self._most = MOST_SLOTS if config.slots == "auto" else config.slots
        self._slots = None if self._auto or not self._most else Slots(self.name, self._most, env)
        self._count = 0 if self._auto else self._most
        self._again_at = 0.0
        self._engines = EngineLoads(env)
        self._slot: int | None = None

    def send(self, call: Call) -> Promise[Reply]:
        """Send the call, in a slot where there is one for it."""
        slots = self._known_slots() if self._most and call.dialect in _PINNED else None
        slot, session = None, 0
        if slots is not None:
            session = _session(call)
            slot = slots.take(session)
        self._slot = slot
        if slots is None or slot is None:
            return super().send(call)
        try:
            promise = super().send(call)
        except BaseException:
            slots.give(slot)
            raise
        promise.then(_Giving(slots, slot, session, self._env.clock))
        return promise

    def _known_slots(self) -> Slots | None:
        """The account of as many as there are; ``None``: the server chooses."""
        said = self._engines.of(self.name)
        if said.others if said is not None else self._auto:
            return None
        there = self._engines.slots(self.name)
        if there == NONE_KEPT:
            self._slots, self._count = None, 0
            return None
        count = min(there or self._count, self._most)
        if count != self._count and self._env.clock() >= self._again_at:
            try:
                self._slots = Slots(self.name, count, self._env)
                self._count = count
            except TpoError:
                self._again_at = self._env.clock() + AGAIN_S
        return self._slots

    def fields(self, call: Call) -> dict[str, object]:  # noqa: ARG002 - the slot is the call's
        """Which slot it is for."""
        return {} if self._slot is None else {"id_slot": self._slot}


class _Giving:
    """Gives a slot back when its call is over, and notes what it holds and how long that took."""

    __slots__ = ("_clock", "_first_s", "_reply", "_sent_at", "_session", "_slot", "_slots")

    def __init__(self, slots: Slots, slot: int, session: int, clock: Callable[[], float]) -> None:
        self._slots = slots
        self._slot = slot
        self._session = session
        self._clock = clock
        self._sent_at = clock()
        self._first_s = 0.0
        self._reply: Reply | None = None

    def __call__(self, reply: Reply | None, error: BaseException | None) -> None:  # noqa: ARG002
        if reply is None:
            self._slots.give(self._slot)
            return
        if reply.stream is not None:
            self._first_s = self._clock() - self._sent_at
        self._reply = reply
        when_over(reply, self._over)

    def _over(self, error: TpoError | None) -> None:
        usage = self._reply.usage if self._reply is not None else None
        if error is None and usage is not None and usage.prompt > 0:
            if self._first_s:
                self._slots.learn(usage.prompt - usage.cached, self._first_s)
            tokens = usage.prompt + max(usage.completion, 0)
            took_s = self._clock() - self._sent_at
            self._slots.note(self._slot, self._session, tokens, took_s)
        self._reply = None
        self._slots.give(self._slot)


def _session(call: Call) -> int:
    """The session as a number; 0: it has none."""
    if not call.affinity:
        return 0
    named = f"{call.tenant}\0{call.affinity}".encode("utf-8", "surrogatepass")
    return int.from_bytes(blake2b(named, digest_size=_SESSION_BYTES).digest(), "little")


FEATURE = Feature(Config, LlamaCppBackend)
