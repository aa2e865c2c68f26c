"""All text that a request shows a model, in whatever dialect it is said.

No field is looked for: every string of the body counts, so that a dialect's next field cannot be a
way round whoever reads this.  Objects with two fields of one name show both, because upstreams
differ in which one they take.

- A picture, a sound or a file in base64 is left out; one that says it is text is decoded.
- A prompt of token ids has no text: ``Shown.unreadable`` says so.

Invariants: parts come in the order in which the body closes them, a line each; whatever a client
sends, the only error is ``InvalidRequest``.
Known weakness: text inside a PDF or a picture is not seen.
"""

from __future__ import annotations

import base64
import binascii
from json import JSONDecoder
from typing import Any, Final, NamedTuple

from tpo_mp.errors import InvalidRequest

Pairs = list[tuple[str, Any]]

_ENCODED: Final = frozenset({"data", "url", "image_url", "file_data", "b64_json"})
"""Fields that may hold something other than text."""
_KIND: Final = frozenset({"type", "mime_type", "mimeType", "media_type", "format"})
_TOKENS: Final = frozenset({"prompt", "input"})
_NAMES_FROM: Final = 25
"""A field name this long says something; shorter ones are the dialect's."""


class Shown(NamedTuple):
    """What a model is shown."""

    text: str
    unreadable: bool


class TextReader:
    """Reads one body after the other."""

    def __init__(self) -> None:
        self._parts: list[str] = []
        self._unreadable = False
        self._decode = JSONDecoder(object_pairs_hook=self._take).decode

    def read(self, body: bytes) -> Shown:
        """The text of a JSON body; raises ``InvalidRequest``."""
        self._parts, self._unreadable = [], False
        try:
            top = self._decode(body.decode())
        except RecursionError:
            raise InvalidRequest("the body is nested too deeply", reason="invalid_json") from None
        except ValueError as e:
            said = f"the body is not valid JSON: {e}"
            raise InvalidRequest(said, reason="invalid_json") from None
        self._value(top)
        parts, self._parts = self._parts, []
        return Shown("\n".join(parts), self._unreadable)

    def _take(self, pairs: Pairs) -> None:
        """An object was closed; ``None`` stands for it in what holds it: it has been read."""
        for name, value in pairs:
            if type(value) is str:
                if name in _ENCODED:
                    self._encoded(value, pairs)
                else:
                    self._parts.append(value)
            elif type(value) is list:
                if name in _TOKENS and _is_tokens(value):
                    self._unreadable = True
                self._value(value)
            if len(name) >= _NAMES_FROM:
                self._parts.append(name)

    def _value(self, value: object) -> None:
        if type(value) is str:
            self._parts.append(value)
        elif type(value) is list:
            for one in value:
                if type(one) is str:
                    self._parts.append(one)
                elif type(one) is list:
                    self._value(one)

    def _encoded(self, value: str, pairs: Pairs) -> None:
        """Text as it is, text in base64 decoded, anything else in base64 not at all."""
        kind = " ".join(said for name, said in pairs if name in _KIND and type(said) is str)
        payload = value
        if value[:5].lower() == "data:":
            said, _, payload = value.partition(",")
            kind = f"{kind} {said.lower()}"
        # Base64 has no blanks: what has them is text, whatever it says it is.
        if not kind or not payload.isascii() or " " in payload:
            self._parts.append(value)
            return
        if "text/" in kind or "json" in kind or "xml" in kind:
            try:
                self._parts.append(base64.b64decode(payload).decode("utf-8", "replace"))
            except binascii.Error:
                self._parts.append(value)
        elif not ("base64" in kind or "/" in kind or value is not payload):
            self._parts.append(value)


def _is_tokens(value: list[Any]) -> bool:
    first = value[0] if value else None
    if type(first) is list:
        first = first[0] if first else None
    return type(first) is int
