"""Texts that match a regular expression, for the plain ones that JSON Schemas hold.

Understood: literals, escapes, classes, ``.``, groups, alternatives, ``* + ? {m,n}``, ``^`` and
``$``; anything else answers None.  Open-ended repetition is drawn short.

Invariants: no client's pattern is ever run, because some run for ever; no text is longer than
``MAX_TEXT``.
"""

from __future__ import annotations

import re
import string
from random import Random
from typing import Final

MAX_TEXT: Final = 4_096
MAX_PATTERN: Final = 512
_MAX_DEPTH: Final = 16
_MORE: Final = 3
"""How often beyond its least an open-ended part may repeat."""
_COUNTED: Final = re.compile(r"\{(\d{1,4})(,?)(\d{0,4})\}")
_WORD: Final = string.ascii_letters + string.digits + "_"
_CLASSES: Final = {"d": string.digits, "w": _WORD, "s": " "}
_ESCAPES: Final = {"n": "\n", "t": "\t", "r": "\r"}
_ANY: Final = string.ascii_lowercase + string.digits
_PLAIN: Final = string.ascii_letters + string.digits + " -_.,:;!?#$%&@~'\"/+*=()[]{}<>^|\\`"


class _Unknown(Exception):
    """The pattern has something this file does not speak."""


def string_like(pattern: str, random: Random) -> str | None:
    """A text in which ``pattern`` is found, or None where that is beyond this file."""
    if len(pattern) > MAX_PATTERN:
        return None
    try:
        return _Writer(pattern, random).write()
    except _Unknown:
        return None


class _Writer:
    """Reads a pattern from left to right and writes as it goes."""

    def __init__(self, pattern: str, random: Random) -> None:
        self._pattern = pattern
        self._random = random
        self._at = 0
        self._depth = 0

    def write(self) -> str:
        """The whole pattern's text."""
        text = self._either()
        if self._at < len(self._pattern) or len(text) > MAX_TEXT:
            raise _Unknown
        return text

    def _either(self) -> str:
        """One of several alternatives."""
        self._depth += 1
        if self._depth > _MAX_DEPTH:
            raise _Unknown
        found = [self._sequence()]
        while self._peek() == "|":
            self._at += 1
            found.append(self._sequence())
        self._depth -= 1
        return self._random.choice(found)

    def _sequence(self) -> str:
        out: list[str] = []
        size = 0
        while self._at < len(self._pattern) and self._peek() not in "|)":
            start = self._at
            part = self._part()
            end = self._at
            least, most = self._repeats()
            after = self._at
            times = self._random.randint(least, most)
            parts = [part] if times else []
            for _ in range(times - 1):
                self._at = start
                parts.append(self._part())
                assert self._at == end
            self._at = after
            out += parts
            size += sum(map(len, parts))
            if size > MAX_TEXT:
                raise _Unknown
        return "".join(out)

    def _part(self) -> str:
        c = self._take()
        if c == "(":
            return self._group()
        if c == "[":
            return self._random.choice(self._class())
        if c == "\\":
            return self._random.choice(self._escaped())
        if c == ".":
            return self._random.choice(_ANY)
        if c in "^$":
            if (c == "^" and self._at > 1) or (c == "$" and self._at < len(self._pattern)):
                raise _Unknown
            return ""
        if c in "*+?{":
            raise _Unknown
        return c

    def _group(self) -> str:
        if self._peek() == "?":
            if self._pattern[self._at : self._at + 2] != "?:":
                raise _Unknown
            self._at += 2
        text = self._either()
        if self._take() != ")":
            raise _Unknown
        return text

    def _class(self) -> str:
        """The characters a class allows."""
        negated = self._peek() == "^"
        self._at += negated
        allowed: list[str] = []
        while (c := self._take()) != "]" or not allowed:
            chosen = self._escaped() if c == "\\" else c
            if self._peek() == "-" and self._pattern[self._at + 1 : self._at + 2] not in ("]", ""):
                self._at += 1
                last = self._take()
                if len(chosen) > 1 or last == "\\" or not ord(c) <= ord(last) < 0x3000:
                    raise _Unknown
                chosen = "".join(map(chr, range(ord(c), ord(last) + 1)))
            allowed.append(chosen)
        found = "".join(allowed)
        if negated:
            found = "".join(c for c in _PLAIN if c not in found)
        if not found:
            raise _Unknown
        return found

    def _escaped(self) -> str:
        c = self._take()
        if c in _CLASSES:
            return _CLASSES[c]
        if c.isalnum() and c not in _ESCAPES:
            raise _Unknown
        return _ESCAPES.get(c, c)

    def _repeats(self) -> tuple[int, int]:
        c = self._peek()
        if c in ("*", "+", "?"):
            self._at += 1
            least, most = {"*": (0, _MORE), "+": (1, 1 + _MORE), "?": (0, 1)}[c]
        elif c == "{" and (counted := _COUNTED.match(self._pattern, self._at)) is not None:
            self._at = counted.end()
            least = int(counted[1])
            if not counted[2]:
                most = least
            else:
                most = int(counted[3]) if counted[3] else least + _MORE
        else:
            return 1, 1
        if least > most or self._peek() in ("*", "+", "?", "{"):
            raise _Unknown
        return least, min(most, least + 4 * _MORE)

    def _peek(self) -> str:
        return self._pattern[self._at : self._at + 1]

    def _take(self) -> str:
        if self._at >= len(self._pattern):
            raise _Unknown
        self._at += 1
        return self._pattern[self._at - 1]
