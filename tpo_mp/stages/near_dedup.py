"""A question that differs from an earlier one in punctuation, case or spelling gets its answer.

Off unless it is configured.  It stands inside the cache and the sharing of identical calls, so it
sees what these had no answer to.  Two calls can only be near when they differ in nothing but the
last words of a user (``pipeline.asked``).  Words with near fingerprints (``pipeline.simhash``) are
candidates; what makes them the same question says ``pipeline.near``.

What is known lies beside the answers, in the cache of the host::

    band of a fingerprint, in a context   the last ``MOST_IN_BAND`` fingerprints with their answers
    question of an answer                 the words it was asked with

Invariants: nothing is near across tenants, credentials, models, instructions, histories or
sampling; what is no word-for-word answer says so in ``X-TPO-Cache: semantic``; a client that wants
its call asked afresh is heeded; at most ``MOST_READ`` candidates are compared.
Known weakness: of two workers that add to one band at once one may be forgotten, which costs a
call.  It finds nothing where the stage ``cache`` does not run.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from hashlib import blake2b
from typing import Annotated, ClassVar, Final, NamedTuple

import msgspec
from msgspec import Meta, Struct

from tpo_mp.pipeline import kept
from tpo_mp.pipeline.asked import LastWords, asked_last
from tpo_mp.pipeline.endings import when_over
from tpo_mp.pipeline.fingerprint import KEY_BYTES, Match, Reuse, fingerprint
from tpo_mp.pipeline.near import Question, question, same_question
from tpo_mp.pipeline.promise import Promise
from tpo_mp.pipeline.simhash import bands, distance, simhash
from tpo_mp.ports import BackendConfig, Env, Feature, Proceed
from tpo_mp.types import Call, Phase, Reply

MOST_IN_BAND: Final = 16
MOST_READ: Final = 2
"""Comparing two questions takes about as long as making a fingerprint."""
SEMANTIC: Final = "semantic"


class Config(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which questions are near, and for how long."""

    similarity_threshold: Annotated[int, Meta(ge=0, le=6,
        description="Bits of 64 in which fingerprints may differ; above 3 not every such pair is "
        "found.")] = 3  # fmt: skip
    window_s: Annotated[float, Meta(gt=0, le=30 * 86_400,
        description="Seconds for which a question is remembered.")] = 300.0  # fmt: skip
    strict: Annotated[bool, Meta(
        description="Whether all words must be the same, in the same order.")] = True  # fmt: skip
    match: Annotated[Match, Meta(
        description="Which calls, as `stages.cache.match`.")] = Match.DETERMINISTIC  # fmt: skip
    max_text_bytes: Annotated[int, Meta(ge=1, le=4096,
        description="Longer questions are left alone; comparing 4096 bytes holds a worker for "
        "about three milliseconds.")] = 512  # fmt: skip


class _Seen(NamedTuple):
    """A question in a band."""

    fingerprint: int
    answer: bytes


_decode_band = msgspec.msgpack.Decoder(list[_Seen]).decode
_encode = msgspec.msgpack.Encoder().encode


class NearDedup:
    """Answers from what nearly the same question was answered."""

    phase: ClassVar[Phase] = Phase.INFERENCE

    def __init__(self, config: Config, env: Env) -> None:
        self._config = config
        self._cache = env.cache
        self._salt = 0
        self._hits = env.metrics.counter(
            "orchestrator_dedup_semantic_hits_total", "Calls answered as a near question was."
        )
        self._misses = env.metrics.counter(
            "orchestrator_dedup_semantic_miss_total", "Questions to which none was near."
        )
        self._bits = env.metrics.counter(
            "tpo_dedup_semantic_bits_total", "Bits in which answered questions differed."
        )

    def meet(self, backends: Sequence[BackendConfig]) -> None:
        """What other backends would answer is another answer."""
        self._salt = kept.salt_of(backends)

    def __call__(self, call: Call, proceed: Proceed, /) -> Awaitable[Reply]:
        """Answer as a near question was answered, or let the call on and remember its own."""
        if call.reuse == Reuse.NONE:
            return proceed(call)
        key = fingerprint(call, self._config.match)
        asked = None if key is None else asked_last(call, self._config.max_text_bytes)
        if key is None or asked is None:
            return proceed(call)
        wanted = question(asked.words)
        if not wanted.words:
            return proceed(call)
        seen = _Seen(simhash(wanted.words), kept.answer_key(key, self._salt))
        if call.reuse == Reuse.ANY:
            reply = self._answer(call, asked, wanted, seen.fingerprint)
            if reply is not None:
                answered: Promise[Reply] = Promise()
                answered.resolve(reply)
                return answered
        self._misses.inc()
        return self._watched(call, asked, seen, proceed(call))

    def _answer(self, call: Call, asked: LastWords, wanted: Question, ours: int) -> Reply | None:
        """The answer of the nearest question that asks the same and was answered."""
        known = {seen for key in self._band_keys(asked, ours) for seen in self._band(key)}
        far = ((distance(ours, seen.fingerprint), seen) for seen in known)
        near = sorted(pair for pair in far if pair[0] <= self._config.similarity_threshold)
        for bits, seen in near[:MOST_READ]:
            words = self._cache.find(self._question_key(asked, seen.answer))
            if words is None or not same_question(
                wanted, question(words.decode("utf-8", "surrogatepass")), strict=self._config.strict
            ):
                continue
            found = self._cache.find(seen.answer)
            reply = None if found is None else kept.replay(found, call)
            if reply is not None:
                call.cache = SEMANTIC
                self._hits.inc()
                self._bits.inc(bits)
                return reply
        return None

    def _watched(
        self, call: Call, asked: LastWords, seen: _Seen, answer: Awaitable[Reply]
    ) -> Awaitable[Reply]:
        generation = self._cache.generation

        def remember(error: BaseException | None) -> None:
            if error is None:
                self._remember(asked, seen, generation)

        def begun(reply: Reply | None, error: BaseException | None) -> None:  # noqa: ARG001
            if reply is not None and reply.status == 200:
                when_over(reply, remember)

        if isinstance(answer, Promise):
            answer.then(begun)
            return answer
        return _then(answer, begun)

    def _remember(self, asked: LastWords, seen: _Seen, generation: int) -> None:
        ttl_s, keep = self._config.window_s, self._cache.keep
        words = asked.words.encode("utf-8", "surrogatepass")
        if not keep(self._question_key(asked, seen.answer), words, ttl_s, generation):
            return
        for key in self._band_keys(asked, seen.fingerprint):
            others = [other for other in self._band(key) if other.answer != seen.answer]
            keep(key, _encode([*others[1 - MOST_IN_BAND :], seen]), ttl_s, generation)

    def _band(self, key: bytes) -> list[_Seen]:
        found = self._cache.find(key)
        return [] if found is None else _decode_band(found)

    def _band_keys(self, asked: LastWords, ours: int) -> list[bytes]:
        """Where the questions of this context lie that share a band."""
        return [
            _key(b"band", asked.rest, b"%d %d %d" % (self._salt, place, band))
            for place, band in enumerate(bands(ours))
        ]

    def _question_key(self, asked: LastWords, answer: bytes) -> bytes:
        """Where the words lie that an answer was asked with."""
        return _key(b"words", asked.rest, answer)


def _key(kind: bytes, *parts: bytes) -> bytes:
    """A key that is no answer's: of its own kind, and each part says its length."""
    sized = b"".join(b"%d:%b" % (len(part), part) for part in parts)
    return blake2b(sized, digest_size=KEY_BYTES, person=kind).digest()


async def _then(
    answer: Awaitable[Reply], begun: Callable[[Reply | None, BaseException | None], None]
) -> Reply:
    reply = await answer
    begun(reply, None)
    return reply


FEATURE = Feature(Config, NearDedup)
