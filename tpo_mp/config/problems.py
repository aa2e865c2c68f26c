"""What is wrong with a config, gathered so that one run shows all of it.

Every problem is one line: path, value, where it came from, what was expected, a suggestion.
Invariants: a line has no control characters, whatever a key holds; a value whose key looks like a
credential is never shown, nor one inside a URL.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from typing import Final

from tpo_mp.errors import ConfigError

_PRIVATE: Final = re.compile(
    r"key|secret|token(?!s|_ms)|password|credential|authorization|cookie|headers|redis_url|nats_url"
)
_IN_URL: Final = re.compile(r"(?<=//)[^/?#]*(?=@)|(?<=\?)[^#]+")
_SHOWN_CHARACTERS: Final = 60


class Problems:
    """Collects problems and warnings while a config is read.

    ``origins`` says where a setting came from when that is not its own place in the file.
    """

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.warnings: list[str] = []
        self.origins: dict[str, str] = {}

    def add(self, path: str, message: str) -> None:
        """Note a problem at a path."""
        self._note(self.lines, f"{path}{self._origin(path)}: {message}")

    def add_value(self, path: str, value: object, message: str) -> None:
        """Note a problem with the value at a path."""
        self._note(self.lines, f"{path} = {shown(path, value)}{self._origin(path)}: {message}")

    def warn(self, message: str) -> None:
        """Note something that does not stop the config from loading."""
        self._note(self.warnings, message)

    def stop(self) -> None:
        """Raise ``ConfigError`` with one line per problem, if there are any."""
        if self.lines:
            raise ConfigError("\n".join(self.lines))

    def _note(self, notes: list[str], line: str) -> None:
        line = "".join(c if c.isprintable() else repr(c)[1:-1] for c in line)
        if line not in notes:
            notes.append(line)

    def _origin(self, path: str) -> str:
        origin = self.origins.get(path) or self._origin_inside(path)
        return f" (from {origin})" if origin else ""

    def _origin_inside(self, path: str) -> str | None:
        """Of a place inside a table that came from elsewhere: the same place there."""
        for table in sorted(self.origins, key=len, reverse=True):
            rest = path.removeprefix(table)
            if rest != path and rest[:1] in (".", "["):
                return self.origins[table] + rest
        return None


def is_private(name: str) -> bool:
    """Whether a key's name says that its value is a credential."""
    return _PRIVATE.search(name.lower()) is not None


def shown(path: str, value: object) -> str:
    """Render a value for a message; credentials become ``***``, in URLs too."""
    if is_private(path.rpartition(".")[2]):
        return "***"
    text = _IN_URL.sub("***", repr(value))
    return text if len(text) <= _SHOWN_CHARACTERS else text[: _SHOWN_CHARACTERS - 1] + "…"


def suggestion(wrong: str, known: Iterable[str]) -> str:
    """Say what was probably meant, or what there is."""
    names = sorted(known)
    return nearest(wrong, names) or f"known: {', '.join(names) or 'none'}"


def nearest(wrong: object, known: Iterable[str]) -> str:
    """Say what was probably meant; empty when nothing is like it."""
    near = difflib.get_close_matches(wrong, list(known), n=1) if isinstance(wrong, str) else []
    return f"did you mean {near[0]!r}?" if near else ""
