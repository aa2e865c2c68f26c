"""What is wrong with a config, gathered so that one run shows all of it.

Every problem is one line: path, value, where it came from, what was expected, a suggestion.
Invariants: a value whose key looks like a credential is never shown.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable

from tpo_mp.errors import ConfigError

_PRIVATE = re.compile(r"key|secret|token|password|credential|authorization|redis_url|nats_url")
_SHOWN_CHARACTERS = 60


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
        line = f"{path}{self._origin(path)}: {message}"
        if line not in self.lines:
            self.lines.append(line)

    def add_value(self, path: str, value: object, message: str) -> None:
        """Note a problem with the value at a path."""
        line = f"{path} = {shown(path, value)}{self._origin(path)}: {message}"
        if line not in self.lines:
            self.lines.append(line)

    def warn(self, message: str) -> None:
        """Note something that does not stop the config from loading."""
        if message not in self.warnings:
            self.warnings.append(message)

    def stop(self) -> None:
        """Raise ``ConfigError`` with one line per problem, if there are any."""
        if self.lines:
            raise ConfigError("\n".join(self.lines))

    def _origin(self, path: str) -> str:
        origin = self.origins.get(path)
        return f" (from {origin})" if origin else ""


def shown(path: str, value: object) -> str:
    """Render a value for a message; credentials become ``***``."""
    if _PRIVATE.search(path.lower()):
        return "***"
    text = repr(value)
    return text if len(text) <= _SHOWN_CHARACTERS else text[: _SHOWN_CHARACTERS - 1] + "…"


def suggestion(wrong: str, known: Iterable[str]) -> str:
    """Say what was probably meant, or what there is."""
    names = sorted(known)
    near = difflib.get_close_matches(wrong, names, n=1)
    if near:
        return f"did you mean {near[0]!r}?"
    return f"known: {', '.join(names) or 'none'}"
