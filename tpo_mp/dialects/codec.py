"""What every wire dialect offers; each codec module is one such object.

Invariants: codecs do no I/O and keep no state but in the decoder and encoder of a stream.
A request that cannot be said in the target dialect raises ``InvalidRequest`` with reason
``unsupported_translation``; an upstream's body that is not in its dialect raises
``BackendFailure``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol

from tpo_mp.errors import TpoError
from tpo_mp.types import Usage

from .canonical import ModelReply, ModelRequest, StreamEvent, Trait
from .watch import StreamWatch, TailWatch


class RequestHead(Protocol):
    """The typed part of a request that routing needs."""

    @property
    def model(self) -> str: ...

    @property
    def stream(self) -> bool | None: ...

    @property
    def affinity(self) -> str | None:
        """What keeps a client on one shard, when the body says it."""

    @property
    def usage_wanted(self) -> bool:
        """Whether the client's stream must show usage."""

    def has_routing_fields(self) -> bool:
        """Whether the client tried to steer the upstream from its body."""


class EventDecoder(Protocol):
    """Upstream bytes to canonical events."""

    def feed(self, chunk: bytes) -> list[StreamEvent]:
        """Take bytes, cut anywhere; raises ``BackendFailure`` when they are no such stream."""

    def close(self) -> list[StreamEvent]:
        """The upstream is done: nothing, or ``ReplyFailed`` when it ended too early."""


class EventEncoder(Protocol):
    """Canonical events to the client's bytes; may hold back what the dialect says later."""

    def encode(self, event: StreamEvent) -> bytes: ...


class Codec(Protocol):
    """One wire dialect."""

    @property
    def NAME(self) -> str:  # noqa: N802 - module constants
        """Its name, as ``types.Dialect`` spells it."""

    @property
    def API(self) -> str:  # noqa: N802
        """The upstream endpoint's path below the base URL."""

    @property
    def CARRIES(self) -> frozenset[Trait]:  # noqa: N802
        """What its requests can say."""

    @property
    def APPROXIMATES(self) -> Mapping[Trait, str]:  # noqa: N802
        """What it says with other words, and how; a part of ``CARRIES``."""

    @property
    def NAMES(self) -> Mapping[Trait, str]:  # noqa: N802
        """The request field of each trait; what is absent its clients cannot ask for."""

    @property
    def StreamDecoder(self) -> Callable[[], EventDecoder]: ...  # noqa: N802

    @property
    def StreamEncoder(self) -> Callable[[ModelRequest], EventEncoder]: ...  # noqa: N802

    def decode_request(self, body: bytes) -> RequestHead: ...

    def strip_routing_fields(self, body: bytes) -> bytes: ...

    def with_model(self, body: bytes, model: str) -> bytes: ...

    def with_stream(self, body: bytes, stream: bool) -> bytes: ...

    def request_to_canonical(self, body: bytes) -> ModelRequest: ...

    def request_from_canonical(self, request: ModelRequest) -> bytes: ...

    def reply_to_canonical(self, body: bytes) -> ModelReply: ...

    def reply_from_canonical(
        self, reply: ModelReply, request: ModelRequest | None = None
    ) -> bytes: ...

    def usage_of(self, body: bytes) -> Usage | None: ...

    def watch(self) -> StreamWatch | TailWatch: ...

    def error_status(self, error: TpoError) -> int: ...

    def error_body(self, error: TpoError, request_id: str = "") -> bytes: ...

    def error_event(self, error: TpoError) -> bytes: ...

    def error_to_canonical(self, body: bytes, status: int) -> TpoError: ...
