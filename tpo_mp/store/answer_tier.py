"""Answers that several hosts find again: a second cache behind the host's own, in Redis.

::

    tpo:1:g            the generation: 16 random bytes.  Whoever finds none writes one
    tpo:1:a:KEY        one answer, KEY is that of the host's cache in hex; forgotten by Redis itself
                       0 "TA1\\0"   4 generation (16)   20 digest (16)   36 the answer

The digest is BLAKE2b over the key, whose the answer is (tenant, dialect, model), the generation and
the answer.  What is found is an answer only when its generation is the present one and its digest
is that of the call that asks; everything else is a miss.  A flush is another generation: nothing
that was kept before is found again, nor what was being asked meanwhile.  Redis may forget whatever
it likes at any time, the generation too.

Invariants: a lookup takes at most ``wait_s``, and none at all while Redis is down; calls that look
for the same key at the same time look once; what waits to be written is bounded; nothing raises.
Known weakness: who can write to this Redis can read the answers in it, and give others.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from functools import partial
from hashlib import blake2b
from os import urandom
from random import Random
from time import monotonic
from typing import Any, Final, TypeAlias

from tpo_mp.errors import Shed
from tpo_mp.ports import Metrics
from tpo_mp.types import TierResult

from .redis_link import RedisAway, RedisLink

GENERATION: Final = b"tpo:1:g"
ANSWER: Final = b"tpo:1:a:"
MOST_ASKED: Final = 1024
AT_ONCE: Final = 16
"""Calls that are told of one lookup in one turn of the loop."""
MOST_WAITING: Final = 256
MOST_WAITING_BYTES: Final = 8 << 20
WRITE_S: Final = 0.25
FLUSH_S: Final = 1.0
WAITS_S: Final = (0.0005, 0.001, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.02, 0.05, 0.1, 0.25, 1.0)
REST_S: Final = 1.0
"""Nothing is written for so long after Redis refused to: it is full, or a copy."""
_GRAIN_S: Final = 0.001
"""By so much may a timer of the loop come late: it counts whole milliseconds."""
_MAGIC: Final = b"TA1\0"
_MARK: Final = 16
_HEAD: Final = len(_MAGIC) + 2 * _MARK
Tell: TypeAlias = "Callable[[tuple[bytes, float] | None], None]"
"""Told an answer as it lies there and the seconds that it has left, or that there is none."""

Found: TypeAlias = tuple[bytes, float, bytes]
"""What lies there, the seconds it has left, and the generation."""


def seal(answer: bytes, key: bytes, whose: bytes, generation: bytes) -> bytes:
    """What is written for an answer."""
    return b"".join((_MAGIC, generation, _digest(answer, key, whose, generation), answer))


def unseal(value: bytes, key: bytes, whose: bytes, generation: bytes) -> bytes | None:
    """The answer in what was found, if it is one to this call."""
    marks = value[len(_MAGIC) : _HEAD]
    if value[: len(_MAGIC)] != _MAGIC or len(marks) != 2 * _MARK or marks[:_MARK] != generation:
        return None
    answer = value[_HEAD:]
    return answer if marks[_MARK:] == _digest(answer, key, whose, generation) else None


def _digest(answer: bytes, key: bytes, whose: bytes, generation: bytes) -> bytes:
    digest = blake2b(generation, digest_size=_MARK, person=b"tpo-answer")
    for part in (key, whose, answer):
        digest.update(b"%d:" % len(part))
        digest.update(part)
    return digest.digest()


class RedisTier:
    """``ports.AnswerTier`` of one process; needs a running loop."""

    def __init__(
        self, url: str, *, wait_s: float, most: int, random: Random, metrics: Metrics,
        count: Callable[[TierResult], None], warn: Callable[..., object],
    ) -> None:  # fmt: skip
        """``most`` is the size of the longest answer that is read.

        ``count`` is told what became of each call's lookup.
        """
        down = metrics.gauge("tpo_redis_down", "Workers that cannot reach Redis, or not in time.")
        self._link = RedisLink(
            url, wait_s=wait_s, random=random, down=down, warn=warn, on_up=self._mend
        )
        self._wait_s = wait_s
        self._count = count
        self._last = _HEAD + most
        self._asked: dict[bytes, list[tuple[bytes, Tell]]] = {}
        self._to_write: deque[tuple[bytes, bytes, int]] = deque()
        self._to_write_bytes = 0
        self._writing = False
        self._rests_until = 0.0
        self._mending = False
        self.generation: bytes | None = None
        """The one last seen; what is kept is kept under it."""
        text = "Lookups of answers in Redis, after the host's own memory had none."
        name = "tpo_cache_tier_lookups_total"
        self._lookups = [
            metrics.counter(name, text, result=result.name.lower()) for result in TierResult
        ]
        self._waits = metrics.histogram(
            "tpo_cache_tier_wait_seconds", "How long lookups in Redis kept their calls.", WAITS_S
        )
        text = "Answers to be kept in Redis."
        name = "tpo_cache_tier_writes_total"
        self._kept, self._dropped, self._refused = (
            metrics.counter(name, text, result=result) for result in ("kept", "dropped", "failed")
        )

    @property
    def up(self) -> bool:
        """Whether Redis is asked at all."""
        return self._link.up

    # -- finding ------------------------------------------------------------------------------

    def find(self, key: bytes, whose: bytes, tell: Tell) -> None:
        """Look for the answer to a call; ``tell`` is called once, in another turn or at once."""
        others = self._asked.get(key)
        if others is not None:
            others.append((whose, tell))
        elif not self._link.up or len(self._asked) >= MOST_ASKED:
            self._told(TierResult.SKIPPED)
            tell(None)
        else:
            those = self._asked[key] = [(whose, tell)]
            since, loop = monotonic(), asyncio.get_running_loop()
            task = self._link.spawn(self._look(key))
            # The link counts who is late and closes his connection, which takes turns of the loop
            # that nobody here waits for; and timers may come late by their grain.
            patience_s = max(self._wait_s - _GRAIN_S, self._wait_s / 2)
            late = loop.call_later(patience_s, self._late, key, those, since)
            # Told from here even if the task is ended before it began.
            task.add_done_callback(partial(self._looked, key, those, since, late))

    async def _look(self, key: bytes) -> Found | None:
        name = ANSWER + key.hex().encode()
        # Its time first: an answer that is replaced meanwhile has more, not less.
        said = await self._link.ask(
            (("GET", GENERATION), ("PTTL", name), ("GETRANGE", name, 0, self._last)), self._wait_s
        )
        return self._read(*said)

    def _late(self, key: bytes, those: list[tuple[bytes, Tell]], since: float) -> None:
        """The time of those who wait is up, whatever comes."""
        if self._asked.get(key) is those:
            del self._asked[key]
            self._waits.observe(monotonic() - since)
            self._tell(key, those, TierResult.FAILED, None, {})

    def _looked(
        self, key: bytes, those: list[tuple[bytes, Tell]], since: float, late: asyncio.TimerHandle,
        task: asyncio.Task[Found | None],
    ) -> None:  # fmt: skip
        late.cancel()
        if self._asked.get(key) is not those:
            if not task.cancelled():
                task.exception()
            return
        del self._asked[key]
        self._waits.observe(monotonic() - since)
        result, found = TierResult.FAILED, None
        if not task.cancelled() and task.exception() is None:
            found = task.result()
            result = TierResult.MISS if found is None else TierResult.HIT
        self._tell(key, those, result, found, {})

    def _tell(
        self, key: bytes, those: list[tuple[bytes, Tell]], result: TierResult, found: Found | None,
        seen: dict[bytes, bytes | None],
    ) -> None:  # fmt: skip
        """Tell some, and the rest in the loop's next turn; what is ``seen`` is not read again."""
        for whose, tell in those[:AT_ONCE]:
            if found and whose not in seen:
                seen[whose] = unseal(found[0], key, whose, found[2])
            answer = seen.get(whose)
            self._told(TierResult.BAD if found and answer is None else result)
            tell((answer, found[1]) if found and answer is not None else None)
        if rest := those[AT_ONCE:]:
            loop = asyncio.get_running_loop()
            loop.call_soon(self._tell, key, rest, result, found, seen)

    def _read(self, generation: Any, left_ms: Any, value: Any) -> Found | None:
        if not isinstance(generation, bytes) or len(generation) != _MARK:
            self.generation = None
            self._mend()
            return None
        self.generation = generation
        if not isinstance(left_ms, int) or not isinstance(value, bytes):
            return None
        if left_ms <= 0 or not value or len(value) > self._last:
            return None
        return value, left_ms / 1e3, generation

    def _told(self, result: TierResult) -> None:
        self._lookups[result].inc()
        self._count(result)

    # -- keeping ------------------------------------------------------------------------------

    def keep(
        self, key: bytes, whose: bytes, answer: bytes, ttl_s: float, generation: bytes | None
    ) -> None:
        """Write an answer that was asked for in this generation, some time soon or not at all."""
        size = len(answer) + _HEAD
        full = len(self._to_write) >= MOST_WAITING
        full = full or self._to_write_bytes + size > MOST_WAITING_BYTES
        if generation is None:
            self._mend()
        takes = self._link.up and not full and monotonic() >= self._rests_until
        if not takes or generation is None or generation != self.generation:
            self._dropped.inc()
            return
        name = ANSWER + key.hex().encode()
        self._to_write.append((name, seal(answer, key, whose, generation), int(ttl_s * 1e3) or 1))
        self._to_write_bytes += size
        if not self._writing:
            self._writing = True
            self._link.spawn(self._write())

    async def _write(self) -> None:
        try:
            while self._to_write:
                name, value, left_ms = self._to_write.popleft()
                self._to_write_bytes -= len(value)
                try:
                    await self._link.ask(
                        (("SET", name, value, "PX", left_ms),), WRITE_S, writes=True
                    )
                except RedisAway as e:
                    # What waits would fare no better.
                    if e.refused:
                        self._rests_until = monotonic() + REST_S
                    self._refused.inc()
                    self._dropped.inc(len(self._to_write))
                    self._to_write.clear()
                    self._to_write_bytes = 0
                else:
                    self._kept.inc()
        finally:
            self._writing = False

    # -- generations --------------------------------------------------------------------------

    def _mend(self) -> None:
        """Write a generation where there is none, or learn which there is."""
        if not self._mending and self._link.up:
            self._mending = True
            self._link.spawn(self._learn())

    async def _learn(self) -> None:
        try:
            mine = urandom(_MARK)
            said = await self._link.ask(
                (("SET", GENERATION, mine, "NX"), ("GET", GENERATION)), WRITE_S, writes=True
            )
            if isinstance(said[1], bytes) and len(said[1]) == _MARK:
                self.generation = said[1]
        except RedisAway:
            pass
        finally:
            self._mending = False

    async def flush(self) -> None:
        """Forget every answer, on all hosts; raises ``Shed`` when Redis does not say so."""
        try:
            await self._link.spawn(self._renew())
        except RedisAway as e:
            raise Shed(f"the answers in Redis could not be forgotten ({e}); try again",
                       reason="redis_away", retry_after_s=1) from None  # fmt: skip

    async def _renew(self) -> None:
        generation = urandom(_MARK)
        await self._link.ask((("SET", GENERATION, generation),), FLUSH_S, writes=True)
        self.generation = generation

    def close(self) -> None:
        """Let go of Redis."""
        self._link.close()
