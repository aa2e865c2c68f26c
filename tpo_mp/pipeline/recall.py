"""What a shard knows of a request whose very bytes came before.

Invariants: it follows from the request's bytes and from whose it is, and from nothing else, so that
it is what reading the request again would find.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, cast

from tpo_mp.dialects.codec import RequestHead
from tpo_mp.types import Call

if TYPE_CHECKING:
    from .delivery import Delivery


class Recalled:
    """One body: what reading it found.

    ``question`` is a call with this very body that nobody made, its fingerprint known; ``key`` is
    what the cache knows its answer by, where that may be told at once.
    """

    __slots__ = ("body", "books", "delivery", "key", "question", "request")

    def __init__(
        self, request: RequestHead, question: Call, key: bytes | None, delivery: type[Delivery]
    ) -> None:
        self.body = question.body
        self.request = request
        self.question = question
        self.key = key
        self.delivery = delivery
        """How its answer is brought to its client."""
        self.books: Any = None
        """Where an account enters its answers."""


ANSWERED: Final = Recalled(
    cast("RequestHead", None), Call(id="", model="", body=b"", stream=False, started_at=0.0), None,
    cast("type[Delivery]", None),
)  # fmt: skip
"""The request was answered: nothing is left to do."""
