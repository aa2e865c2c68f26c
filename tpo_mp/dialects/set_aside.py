"""Reads and writes a JSON body without touching the pictures, sounds and files in it.

A long string in a field that holds such data is set aside: a mark stands for it while the rest is
read and changed, and it comes back as it was, byte for byte.  So a body of megabytes costs what its
words cost, and a pass that looks for quotes.

Invariants: only values of the fields ``_DATA`` of at least ``LONG`` bytes are set aside; a mark is
a string that no client can know.
"""

from __future__ import annotations

import re
from secrets import token_hex
from typing import Any, Final

import orjson

LONG: Final = 4096
_DATA: Final = re.compile(rb'"(?:data|url|image_url|file_data|b64_json|fileData)"\s*:\s*"')
# In JSON nobody can write the bytes of a quote into a string, so a match is a field and its value.


class SetAside:
    """One body; ``read`` what is in it, change that, and ``write`` it."""

    __slots__ = ("_aside", "_mark", "_rest")

    def __init__(self, body: bytes) -> None:
        self._mark = b""
        self._aside: list[bytes] = []
        self._rest = body
        if len(body) >= LONG:
            self._take_out(body)

    def _take_out(self, body: bytes) -> None:
        parts: list[bytes] = []
        done, found = 0, _DATA.search(body)
        while found is not None:
            start = found.end()
            end = body.find(b'"', start)
            if end < 0:
                return  # it is no JSON, as reading it will tell
            if end - start >= LONG and body.find(b"\\", start, end) < 0:
                self._mark = self._mark or token_hex(16).encode()
                parts += (body[done:start], b"%b%d." % (self._mark, len(self._aside)))
                self._aside.append(body[start:end])
                done = end
            found = _DATA.search(body, end)
        if parts:
            self._rest = b"".join((*parts, body[done:]))

    def read(self) -> Any:
        """The JSON value, with marks in it; raises ``ValueError``."""
        return orjson.loads(self._rest)

    def write(self, value: Any) -> bytes:
        """The bytes of ``value``, with everything in its place; raises ``TypeError``."""
        said = orjson.dumps(value)
        if not self._mark:
            return said
        parts = said.split(self._mark)
        whole = [parts[0]]
        for part in parts[1:]:
            number, _, rest = part.partition(b".")
            whole += (self._aside[int(number)], rest)
        return b"".join(whole)
