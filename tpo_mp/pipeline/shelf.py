"""Answers of the host's cache that a process found lately, ready to be told again.

An answer that is asked for over and over is neither copied out of shared memory, checked nor taken
apart each time: what was made of it the first time is kept, with the mark of where it lay.  Whether
it may be told is always the cache's to say: when the mark no longer holds, since the answer grew
old, was flushed, overwritten or replaced, it is looked up again.

Invariants: nothing is told that a lookup would not find at that moment; at most ``MOST`` answers
and ``MOST_BYTES`` are kept, the oldest go first.
"""

from __future__ import annotations

from typing import Final

from tpo_mp.types import AnswerCache, AnswerMark, Call, Reply

from .kept import ToldAnswer, tell

MOST: Final = 2048
MOST_BYTES: Final = 4 << 20
MOST_EACH_BYTES: Final = 64 << 10


class AnswerShelf:
    """One process's, under one configuration."""

    def __init__(self, cache: AnswerCache) -> None:
        self._cache = cache
        self._told: dict[bytes, tuple[ToldAnswer, AnswerMark]] = {}
        self._bytes = 0

    def __len__(self) -> int:
        return len(self._told)

    def reply(self, key: bytes, call: Call) -> Reply | None:
        """The reply to a call that the cache has under its key, in the form it asks for."""
        told = self.told(key, call)
        return None if told is None else told.reply(call.id)

    def told(self, key: bytes, call: Call) -> ToldAnswer | None:
        """The same, before it is made the reply to one call."""
        form = key if not call.stream else key + (b"u" if call.usage_wanted else b"s")
        known = self._told.get(form)
        if known is not None:
            if self._cache.still(known[1]):
                return known[0]
            self._take(form)
        found = self._cache.find_marked(key)
        if found is None:
            return None
        answer, mark = found
        told = tell(answer, call)
        if told is not None and told.size <= MOST_EACH_BYTES:
            self._put(form, told, mark)
        return told

    def _put(self, form: bytes, told: ToldAnswer, mark: AnswerMark) -> None:
        self._told[form] = (told, mark)
        self._bytes += told.size
        while self._bytes > MOST_BYTES or len(self._told) > MOST:
            self._take(next(iter(self._told)))

    def _take(self, form: bytes) -> None:
        told, _ = self._told.pop(form)
        self._bytes -= told.size
