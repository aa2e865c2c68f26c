"""OpenAI embeddings: request checks; bodies and replies pass as they are.

Source: OpenAI API reference, embeddings.
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from .body import RoutedHead, strip_routing_fields, typed, with_model
from .openai_wire import error_body, error_event, error_status, usage_of

__all__ = [
    "API", "NAME", "EmbeddingsRequest", "decode_request", "error_body", "error_event",
    "error_status", "strip_routing_fields", "usage_of", "with_model",
]  # fmt: skip

NAME = "openai_embeddings"
API = "embeddings"


class EmbeddingsRequest(RoutedHead, gc=False):
    """The typed part of a request; bounds are wide safety caps."""

    model: Annotated[str, Meta(min_length=1, max_length=256)]
    input: (
        Annotated[str, Meta(min_length=1)]
        | Annotated[list[str | int | list[int]], Meta(min_length=1, max_length=100_000)]
    )
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: Annotated[int, Meta(ge=1, le=1_000_000)] | None = None
    user: str | None = None

    @property
    def stream(self) -> bool | None:
        """Embeddings are never streamed."""
        return None

    @property
    def affinity(self) -> str | None:
        """What keeps a client on one shard."""
        return self.user

    @property
    def usage_wanted(self) -> bool:
        """Every reply shows usage."""
        return True


_decode_request = msgspec.json.Decoder(EmbeddingsRequest).decode


def decode_request(body: bytes) -> EmbeddingsRequest:
    """Check a request body; raises ``InvalidRequest`` naming the field."""
    return typed(_decode_request, body)
