"""An exchange with nobody behind it: what a call has that outlives its client, or had none.

Invariants: it keeps method and path of the request it stands for, whatever that connection carries
next; nothing it is told goes anywhere.
"""

from __future__ import annotations

from collections.abc import Callable

from tpo_mp.http.exchange import JSON
from tpo_mp.http.head import Head
from tpo_mp.types import Stream


class AbsentClient:
    """Takes an answer and drops it."""

    __slots__ = ("body", "head", "on_disconnect", "peer")
    open = False

    def __init__(self, method: str, path: str, body: bytes = b"", peer: str = "") -> None:
        self.head = Head()
        self.head.method = method
        self.head.path = path
        self.body = body
        self.peer = peer
        self.on_disconnect: Callable[[], None] | None = None

    def respond(
        self, status: int, body: bytes, content_type: bytes = JSON, extra: bytes = b""
    ) -> None:
        """Nobody listens."""

    def begin(self, status: int, content_type: bytes, extra: bytes, source: Stream | None) -> None:
        """Nobody listens."""

    def write(self, data: bytes) -> None:
        """Nobody listens."""

    def finish(self) -> None:
        """Nobody listens."""

    def abort(self, *, hard: bool = False) -> None:
        """Nobody listens."""
