"""Compares a stream that begins again with what its client has of it already.

Events are equal when their data are, but for what is another each time it is said: ids and
instants.  From the first event that is new on, bytes pass, with the ids that the client knows.

Invariants: nothing passes unless all that the client has came again; comments and pings are no
events.
"""

from __future__ import annotations

from collections import deque
from typing import Any, Final

import orjson

from tpo_mp.dialects import openai_chat

_MOMENTARY: Final = frozenset(
    {"created", "created_at", "completed_at", "system_fingerprint", "obfuscation"}
)
_ENDS: Final = (b"\n\n", b"\r\n\r\n")


class DifferentError(Exception):
    """It says something else."""


class Prefix:
    """What a client has of a stream, to be found again in another."""

    def __init__(self, had: bytes) -> None:
        self._left = deque(_data(had))
        self._buffer = b""
        self._ids: dict[bytes, bytes] = {}
        self.found = not self._left

    @staticmethod
    def is_whole(had: bytes) -> bool:
        """Whether it ends where an event does, so that another stream can go on from there."""
        return had.endswith(_ENDS)

    def feed(self, chunk: bytes) -> bytes:
        """What of ``chunk`` the client does not have; raises ``DifferentError``."""
        if self.found:
            return self._known_ids(chunk)
        self._buffer += chunk
        while not self.found:
            block, end, rest = _event(self._buffer)
            if not end:
                return b""
            self._buffer = rest
            for data in _data(block + end):
                if not self._left or not self._same(data, self._left.popleft()):
                    raise DifferentError
                self.found = not self._left
        rest, self._buffer = self._buffer, b""
        return self._known_ids(rest)

    def _same(self, new: bytes, old: bytes) -> bool:
        if new == old:
            return True
        try:
            return self._alike(orjson.loads(new), orjson.loads(old))
        except (ValueError, RecursionError):
            return False

    def _alike(self, new: Any, old: Any) -> bool:
        if type(new) is dict and type(old) is dict:
            if new.keys() != old.keys():
                return False
            for name, value in new.items():
                if name == "id" or name.endswith("_id"):
                    if type(value) is not type(old[name]):
                        return False
                    if value != old[name]:
                        self._ids[orjson.dumps(value)] = orjson.dumps(old[name])
                elif name not in _MOMENTARY and not self._alike(value, old[name]):
                    return False
            return True
        if type(new) is list and type(old) is list:
            return len(new) == len(old) and all(map(self._alike, new, old))
        return bool(new == old)

    def _known_ids(self, chunk: bytes) -> bytes:
        for new, old in self._ids.items():
            chunk = chunk.replace(new, old)
        return chunk


def _event(stream: bytes) -> tuple[bytes, bytes, bytes]:
    """The first event of a stream, its end, and the rest; without an end there is none yet."""
    plain, carried = stream.find(b"\n\n"), stream.find(b"\r\n\r\n")
    if carried >= 0 and (plain < 0 or carried < plain):
        return stream.partition(b"\r\n\r\n")
    return stream.partition(b"\n\n")


def _data(stream: bytes) -> list[bytes]:
    return [
        data
        for data in openai_chat.event_data(stream)
        if not data.startswith((b'{"type":"ping"', b'{"type": "ping"'))
    ]
