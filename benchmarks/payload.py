"""The request every load sends: one chat body of about 260 bytes, different each time.

A request is ``before + counter + after`` with a counter of fixed width, so its length never
changes and a load generator only joins three strings.  ``tag`` keeps two runs apart: no body is
ever sent twice to the same gateway, whatever it caches.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from .peers import KEY

DIGITS = 12
PATH = "/v1/chat/completions"
MESSAGES = "/v1/messages"
MARK = "@counter@"
_QUESTION = "What is backpressure in a bounded queue and why does it matter for an LLM gateway?"


@dataclass(frozen=True, slots=True)
class Payload:
    """What to ask: ``extra`` is merged into the body, ``headers`` into the head.

    ``path`` says in which dialect: chat completions, or the same question to ``MESSAGES``.
    """

    tag: str
    stream: bool = False
    extra: Mapping[str, Any] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)
    path: str = PATH

    def body(self, counter: int) -> bytes:
        """Render one body."""
        return self._template().replace(MARK, f"{counter:0{DIGITS}d}").encode()

    def pieces(self, url: str) -> tuple[bytes, bytes]:
        """Render everything that stands before and after the counter in a request to ``url``."""
        before, after = self._template().split(MARK)
        length = len(before) + DIGITS + len(after)
        lines = [
            f"POST {self.path} HTTP/1.1",
            f"Host: {urlsplit(url).netloc}",
            "Content-Type: application/json",
            f"Authorization: Bearer {KEY}",
            *(f"{name}: {value}" for name, value in self.headers.items()),
            f"Content-Length: {length}",
        ]
        return ("\r\n".join(lines) + "\r\n\r\n" + before).encode(), after.encode()

    def _template(self) -> str:
        body: dict[str, Any] = {
            "model": "echo",
            "messages": [
                {"role": "system", "content": "You are a helpful assistant."},
                {"role": "user", "content": f"{self.tag} {MARK} {_QUESTION}"},
            ],
            "max_tokens": 64,
        }
        if self.path == MESSAGES:
            body["system"] = body["messages"].pop(0)["content"]
        if self.stream:
            body["stream"] = True
        return json.dumps(body | dict(self.extra), separators=(",", ":"))
