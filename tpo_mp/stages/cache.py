"""An answer that was given is given again to the same question, for a while, by every worker.

What the same question is says ``pipeline.fingerprint``; what is kept of an answer, and how it
becomes a stream or a whole, ``pipeline.kept``.  The answers lie in the memory of the host
(``shm.cache``), bounded in bytes, and a change of the configured backends forgets them.

Behind it may be a second tier that several hosts share (``store.answer_tier``): a call that finds
nothing here is looked up there before it is asked, and what is found there is kept here, too.

A client opts out with ``X-TPO-Cache: no-store`` (nothing kept, nothing given again) or ``no-cache``
(asked afresh, and kept); ``Cache-Control`` counts likewise.  A call that was looked up says so in
``X-TPO-Cache: hit`` or ``miss``.

When a stage directly inside shares calls (``ports.AnswerKeeper``), what it asks is kept before it
says that it is answered, whoever waits for it; and it looks here again where an answer may have
come since a call was first looked up.  So no worker asks what another was just answered.

Invariants: an answer never leaves its tenant, nor the credential it was asked with; errors and
answers that were cut are not kept; a hit asks no backend and uses nothing of a token budget.
Known weakness: an answer that the upstream would give differently by now is old for up to
``ttl_s``.
"""

from __future__ import annotations

from collections.abc import Awaitable, Sequence
from typing import Annotated, ClassVar, Final

from msgspec import Meta, Struct

from tpo_mp.pipeline import kept, second_look
from tpo_mp.pipeline.fingerprint import MAX_BODY_BYTES, Match, Reuse, fingerprint
from tpo_mp.pipeline.kept import ToldAnswer
from tpo_mp.pipeline.promise import Promise, run
from tpo_mp.pipeline.second_look import SecondLook
from tpo_mp.pipeline.shelf import AnswerShelf
from tpo_mp.pipeline.taps import Tapped, tap
from tpo_mp.ports import BackendConfig, Env, Feature, Proceed
from tpo_mp.types import AnswerTier, Call, Phase, Reply, Tap

_ANY: Final = int(Reuse.ANY)
_NONE: Final = int(Reuse.NONE)


class Config(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is found again, and for how long."""

    ttl_s: Annotated[float, Meta(gt=0, le=30 * 86_400,
        description="Seconds for which an answer is given again.")] = 300.0  # fmt: skip
    match: Annotated[Match, Meta(
        description="Which calls: those that ask for the same answer again (embeddings, "
        "temperature 0, a seed), or all.")] = Match.DETERMINISTIC  # fmt: skip
    max_request_bytes: Annotated[int, Meta(ge=1, le=MAX_BODY_BYTES,
        description="Calls with a larger body are not looked up.")] = 16_384  # fmt: skip
    max_answer_bytes: Annotated[int, Meta(ge=1, le=16 << 20,
        description="Larger answers are not kept, nor any above an eighth of one process's part "
        "of `server.cache_bytes`.")] = 262_144  # fmt: skip


class Cache:
    """Answers from what was answered before."""

    phase: ClassVar[Phase] = Phase.INFERENCE

    def __init__(self, config: Config, env: Env) -> None:
        self._config = config
        self._match = config.match
        self._max_request = config.max_request_bytes
        self.cache = env.cache
        self.tier = env.tier
        self.ttl_s = config.ttl_s
        self.max_answer = min(config.max_answer_bytes, env.cache.most)
        self._salt = 0
        self._shelf = AnswerShelf(env.cache)
        self.entrusted = False

    def meet(self, backends: Sequence[BackendConfig]) -> None:
        """What other backends would answer is another answer."""
        self._salt = kept.salt_of(backends)

    def __call__(self, call: Call, proceed: Proceed, /) -> Awaitable[Reply]:
        """Answer from the cache, or let the call on and keep its answer."""
        if call.reuse == _NONE or len(call.body) > self._max_request:
            return proceed(call)
        key = self._under(call)
        if key is None:
            return proceed(call)
        cache = self.cache
        if call.reuse == _ANY:
            reply = self._shelf.reply(key, call)
            if reply is not None:
                call.cache = "hit"
                cache.count(hit=True)
                answered: Promise[Reply] = Promise()
                answered.resolve(reply)
                return answered
            if self.tier is not None:
                return _Farther(self, self.tier, call, key, proceed).look()
        call.cache = "miss"
        cache.count(hit=False)
        if self.entrusted:
            return proceed(call)
        return _Keeping(self, call, key, cache.generation).watch(proceed(call))

    # -- AnswerTeller ---------------------------------------------------------------------------

    def key_of(self, call: Call) -> bytes | None:
        """What the answer to a call is kept under; ``None``: it is not looked up."""
        if call.reuse != _ANY or len(call.body) > self._max_request:
            return None
        return self._under(call)

    def _under(self, call: Call) -> bytes | None:
        """The same, whatever the call's client allows; worked out once for a body."""
        key = fingerprint(call, self._match)
        if key is None:
            return None
        known = call.fingerprint.kept_as
        if known is None or known[0] != self._salt:
            known = call.fingerprint.kept_as = (self._salt, kept.answer_key(key, self._salt))
        return known[1]  # type: ignore[no-any-return]  # a call keeps it as anything

    def recall(self, key: bytes, question: Call) -> ToldAnswer | None:
        """What is told to a call with this key and in the form of ``question``; it is a hit."""
        told = self._shelf.told(key, question)
        if told is not None:
            self.cache.count(hit=True)
        return told

    # -- AnswerKeeper ---------------------------------------------------------------------------

    def entrust(self) -> None:
        self.entrusted = True

    def keeping(self, call: Call, asked: Awaitable[Reply]) -> Awaitable[Reply]:
        key = self._under(call) if call.cache == "miss" else None
        if key is None:
            return asked
        return _Keeping(self, call, key, self.cache.generation).watch(asked)

    def again(self, call: Call) -> Reply | None:
        if call.reuse != _ANY or len(call.body) > self._max_request:
            return None
        key = self._under(call)
        if key is None:
            return None
        reply = self._shelf.reply(key, call)
        if reply is None:
            call.cache = "miss"
        else:
            call.cache = "hit"
            self.cache.count(hit=True)
        return reply


class _Farther:
    """Looks one call up in the second tier, and asks when it is not there either."""

    __slots__ = ("_call", "_generation", "_key", "_proceed", "_stage", "_tier")

    def __init__(
        self, stage: Cache, tier: AnswerTier, call: Call, key: bytes, proceed: Proceed
    ) -> None:
        self._stage = stage
        self._tier = tier
        self._call = call
        self._key = key
        self._proceed = proceed
        self._generation = stage.cache.generation

    def look(self) -> Promise[Reply]:
        """Its reply, from wherever it comes."""
        return SecondLook(self._tier, self._key, self._call, self._found, self._ask).out

    def _found(self, answer: bytes, left_s: float) -> Reply | None:
        stage, call = self._stage, self._call
        reply = kept.replay(answer, call)
        if reply is not None:
            stage.cache.keep(self._key, answer, min(left_s, stage.ttl_s), self._generation)
            call.cache = "hit"
            stage.cache.count(hit=True)
        return reply

    def _ask(self) -> Awaitable[Reply]:
        stage, call = self._stage, self._call
        reply = stage.again(call)  # looking farther took its time
        if reply is not None:
            answered: Promise[Reply] = Promise()
            answered.resolve(reply)
            return answered
        stage.cache.count(hit=False)
        if stage.entrusted:
            return self._proceed(call)
        keeping = _Keeping(stage, call, self._key, self._generation)
        return keeping.watch(self._proceed(call))


class _Keeping:
    """Keeps the answer of one call once it is whole."""

    __slots__ = ("_call", "_farther", "_generation", "_key", "_out", "_reply", "_stage")

    def __init__(self, stage: Cache, call: Call, key: bytes, generation: int) -> None:
        self._stage = stage
        self._farther = stage.tier.generation if stage.tier is not None else None
        self._call = call
        self._key = key
        self._generation = generation
        self._out: Promise[Reply]
        self._reply: Reply | None

    def watch(self, asked: Awaitable[Reply]) -> Promise[Reply]:
        """Pass an outcome on, and keep it."""
        if isinstance(asked, Promise):
            asked.then(self._begun)
            return asked
        out: Promise[Reply] = Promise()
        self._out = out
        out.then(self._begun)
        cancel = run(asked, self._pass)
        if not out.done:
            out.cancel_with = cancel
        return out

    def _pass(self, reply: Reply | None, error: BaseException | None) -> None:
        if reply is None:
            self._out.reject(error or RuntimeError("a backend answered nothing"))
        elif not self._out.done:
            self._out.resolve(reply)
        elif reply.stream is not None:
            reply.stream.cancel()

    def _begun(self, reply: Reply | None, error: BaseException | None) -> None:
        if reply is None or reply.status != 200 or self._call.cache != "miss":
            return  # who joined another call leaves the keeping to it
        if reply.stream is None:
            self._keep(reply, reply.body or b"")
        else:
            self._reply = reply
            limit = self._stage.max_answer
            tap(self._call, reply, Tap.BYTES, self._over, limit_bytes=limit)

    def _over(self, seen: Tapped) -> None:
        reply, self._reply = self._reply, None
        if seen.error is None and seen.body is not None and reply is not None:
            self._keep(reply, seen.body)

    def _keep(self, reply: Reply, body: bytes) -> None:
        stage = self._stage
        if len(body) > stage.max_answer:
            return
        answer = kept.keep(self._call, reply, body)
        if answer is not None:
            stage.cache.keep(self._key, answer, stage.ttl_s, self._generation)
            if stage.tier is not None:
                whose = second_look.whose(self._call)
                stage.tier.keep(self._key, whose, answer, stage.ttl_s, self._farther)


FEATURE = Feature(Config, Cache)
