"""Goes on with a stream whose backend died in the middle of it, on another backend.

Off unless it is configured.  Only backends that are named here are asked, in the manner in which
they can be told to go on with words that are there (``dialects.continued``); what the client reads
is one reply, with a comment at the seam (``pipeline.continuing``).

A stream is gone on with when it broke for the backend's or the network's fault (a cut, silence, an
error event, a missing end), and consists of plain words of one answer so far: no thoughts, no tool
calls, no forced shape, one choice.  The other backends of its route come first, in their order and
those that a breaker closes off last; the broken one is asked again when nobody else is left.
At most ``most`` are asked for one stream; how often a host may is a share of its calls and a floor
(``pipeline.retry_budget``, a purse of its own).  A stream that is not gone on with ends in the
error event that it would have had.

The rest's prompt counts as asked beside the answer (``aside_tokens``): what was said before the
break was paid for and is sent again.

Invariants: nothing is asked after a client left or its deadline passed; an answer that had come to
its end is never gone on with.
Known weakness: a route that picks no single backend (``hedge``) tells no choices, so only the same
backend is asked again; each open stream is read, which costs about what a translation does.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from copy import copy
from typing import Annotated, Any, ClassVar, Final

from msgspec import Meta, Struct

from tpo_mp.dialects.continued import DIALECTS, Manner, continued
from tpo_mp.errors import TpoError
from tpo_mp.pipeline.attribution import Blame, blame
from tpo_mp.pipeline.breaker_rows import ANY, KnownTargets
from tpo_mp.pipeline.continuing import Continuing
from tpo_mp.pipeline.promise import Promise, run
from tpo_mp.pipeline.retry_budget import RetryBudget
from tpo_mp.pipeline.spending import AsideBooks
from tpo_mp.ports import BackendConfig, Counter, Env, Feature, Proceed
from tpo_mp.types import Call, Phase, Reply, Usage

_BROKEN: Final = frozenset((Blame.BACKEND, Blame.NETWORK))


class Config(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Who goes on with broken streams, and how often."""

    backends: Annotated[
        dict[str, Manner],
        Meta(min_length=1, max_length=256,
             description="Backends that can go on with words that are there, and how they are told "
             "to: `vllm` (vLLM, SGLang), `prefix` (DeepSeek, Mistral), `prefill` (llama.cpp, "
             "Anthropic models that take a begun turn)."),
    ]  # fmt: skip
    most: Annotated[
        int, Meta(ge=1, le=10, description="How often a backend is asked to go on with one stream.")
    ] = 2
    max_characters: Annotated[
        int,
        Meta(ge=1, le=4_194_304, description="A longer answer is not gone on with."),
    ] = 262_144
    budget: Annotated[
        float, Meta(ge=0, le=1, description="Share of the host's calls that may be gone on with.")
    ] = 0.1
    budget_floor: Annotated[
        int,
        Meta(ge=0, le=1_000_000, description="Streams in ten seconds that are allowed besides."),
    ] = 10


class Continuation:
    """Watches streams, and goes on with those that break."""

    phase: ClassVar[Phase] = Phase.INFERENCE

    def __init__(self, config: Config, env: Env) -> None:
        self.config = config
        self.clock = env.clock
        self._env = env
        self.budget = RetryBudget(
            env.ledger, env.clock,
            share=config.budget, floor=config.budget_floor, name="continuation:budget",
        )  # fmt: skip
        self.targets: Mapping[str, Any] = {}
        self._known = KnownTargets(())
        self._books: dict[tuple[str, str], AsideBooks] = {}
        self._continued: dict[str, Counter] = {}
        self._not: dict[str, Counter] = {}

    def meet(self, backends: list[BackendConfig]) -> None:
        """Know their models."""
        self._known = KnownTargets(backends)

    def meet_targets(self, targets: Mapping[str, Any]) -> None:
        """Know how they are asked."""
        self.targets = targets

    def __call__(self, call: Call, proceed: Proceed, /) -> Awaitable[Reply]:
        """Ask as ever, and watch what comes if it is a stream."""
        asked = proceed(call)
        self.budget.count()
        if not call.stream or call.dialect not in DIALECTS:
            return asked
        out: Promise[Reply] = Promise()

        def done(reply: Reply | None, error: BaseException | None) -> None:
            if reply is None:
                out.reject(error or RuntimeError("a backend answered nothing"))
            elif out.done:  # given up meanwhile
                if reply.stream is not None:
                    reply.stream.cancel()
            else:
                if reply.stream is not None:
                    Continuing(self, call, reply, self.config.max_characters)
                out.resolve(reply)

        cancel = run(asked, done)
        if not out.done:
            out.cancel_with = cancel
        return out

    def go_on(self, stream: Continuing, error: TpoError) -> Callable[[], None] | None:
        """Ask somebody for the rest, if it broke and can be gone on with."""
        why = stream.said.why
        if blame(error) not in _BROKEN:
            stream.no_rest()  # its client's own: nobody's business
            return None
        if not why and not stream.said.text:
            why = "nothing_said"
        asking = _Asking(self, stream)
        if why:
            asking.give_up(why)
            return None
        asking.next()
        return asking.cancel

    def count(self, backend: str) -> None:
        """Count a stream that is gone on with."""
        counter = self._continued.get(backend)
        if counter is None:
            counter = self._continued[backend] = self._env.metrics.counter(
                "tpo_streams_continued_total",
                "Broken streams that a backend went on with.", backend=backend,
            )  # fmt: skip
        counter.inc()

    def count_not(self, why: str) -> None:
        """Count one that is not."""
        counter = self._not.get(why)
        if counter is None:
            counter = self._not[why] = self._env.metrics.counter(
                "tpo_streams_not_continued_total",
                "Broken streams that nobody went on with, by why.", reason=why,
            )  # fmt: skip
        counter.inc()

    def book(self, call: Call, backend: str, usage: Usage | None) -> None:
        """Count what was asked a second time."""
        model = call.model if call.model in self._known.models.get(backend, ()) else ANY
        books = self._books.get((backend, model))
        if books is None:
            books = self._books[backend, model] = AsideBooks(backend, model, self._env)
        books.enter(call, usage)


class _Asking:
    """The search for who goes on with one stream."""

    __slots__ = ("_asked", "_call", "_cancel", "_names", "_over", "_stage", "_stream")

    def __init__(self, stage: Continuation, stream: Continuing) -> None:
        self._stage = stage
        self._stream = stream
        self._call = stream.call
        self._asked = 0
        self._over = False
        self._cancel: Callable[[], object] | None = None
        self._names = self._in_order()

    def _in_order(self) -> list[str]:
        call, stage = self._call, self._stage
        broke = call.backend
        named = [n for n in call.choices or (broke,) if n in stage.config.backends]
        named = [n for n in named if n in stage.targets]
        return sorted(named, key=lambda n: (n == broke, stage.targets[n].blocked(call)))

    def next(self) -> None:
        """Ask the next one."""
        stage, stream, call = self._stage, self._stream, self._call
        if not self._names:
            self.give_up("nobody")
        elif stream.tries >= stage.config.most:
            self.give_up("tries")
        elif stage.clock() >= call.deadline:
            self.give_up("deadline")
        elif not stage.budget.take():
            self.give_up("budget")
        else:
            self._ask(self._names.pop(0))

    def _ask(self, name: str) -> None:
        stage, stream, call = self._stage, self._stream, self._call
        manner = stage.config.backends[name]
        said = stream.said.text
        begun = said.rstrip() if manner == "prefill" else said
        body = continued(call.dialect, call.body, begun, stream.said.tokens, manner)
        if body is None:
            self.give_up("unsayable")
            return
        stream.tries += 1
        asked = copy(call)
        asked.body, asked.fingerprint, asked.tried, asked.aside = body, None, None, None
        asked.patience_s += stage.clock() - call.started_at  # its SDK waits anew for each event

        def done(reply: Reply | None, _error: BaseException | None) -> None:
            self._cancel = None
            call.attempts = asked.attempts
            if self._over:
                if reply is not None and reply.stream is not None:
                    reply.stream.cancel()
            elif reply is None or reply.stream is None:
                self.next()
            else:
                self._over = True
                call.backend, call.note, call.unclear = name, asked.note, True
                stage.count(name)
                stream.rest(reply, name, said[len(begun) :])

        try:
            cancel = run(stage.targets[name].infer(asked), done)
        except Exception as e:  # noqa: BLE001 - the client has the first part's error
            e.__traceback__ = None  # its frames hold this call
            done(None, e)
            return
        if cancel is not None and not self._over:
            self._cancel = cancel

    def give_up(self, why: str) -> None:
        """Nobody goes on."""
        self._over = True
        self._stage.count_not(why)
        self._stream.no_rest()

    def cancel(self) -> None:
        """The client left."""
        self._over = True
        cancel, self._cancel = self._cancel, None
        if cancel is not None:
            cancel()


FEATURE = Feature(Config, Continuation)
