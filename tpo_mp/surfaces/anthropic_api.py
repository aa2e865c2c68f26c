"""The Anthropic family: messages, token counting and legacy completions.

Source: Anthropic API reference; ``request-id`` and the error envelope as its SDKs read them.
"""

from __future__ import annotations

from typing import ClassVar, Final

from msgspec import Struct

from tpo_mp.dialects import anthropic_complete, shapes
from tpo_mp.dialects import anthropic_messages as dialect
from tpo_mp.http.endpoints import EVENTS, Endpoint, Outcome, Parameter
from tpo_mp.http.exchange import Exchange
from tpo_mp.pipeline.delivery import Delivery
from tpo_mp.pipeline.gateway import Gateway
from tpo_mp.pipeline.ways import Way
from tpo_mp.ports import Env, Feature
from tpo_mp.types import Dialect, Reply

_FORWARDED = (b"anthropic-version", b"anthropic-beta")
VERSIONS = tuple(
    Parameter(name.decode(), "Goes upstream as it is.", place="header") for name in _FORWARDED
)


class Config(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """No options."""


class AnthropicApi:
    """Routes under ``/v1`` that Anthropic clients call."""

    def __init__(self, config: Config, env: Env) -> None:
        self._gateway: Gateway

    def endpoints(self, gateway: Gateway) -> list[Endpoint]:
        """The routes of this surface."""
        self._gateway = gateway
        return [
            Endpoint(
                "POST", "/v1/messages", self.messages, "anthropic", max_body_bytes=0, infers=True,
                parameters=VERSIONS,
                request=dialect.MessagesRequest,
                outcomes=(Outcome("the message", shapes.MessageAnswer),
                          Outcome("with `stream`, its events up to `message_stop`", media=EVENTS)),
                example={"model": "echo", "max_tokens": 64,
                         "messages": [{"role": "user", "content": "hello"}]},
            ),
            Endpoint(
                "POST", "/v1/messages/count_tokens", self.count, "anthropic", max_body_bytes=0,
                infers=True, request=dialect.CountRequest,
                outcomes=(Outcome("the count", shapes.TokenCount),),
                example={"model": "claude-sonnet-4-5",
                         "messages": [{"role": "user", "content": "hello"}]},
            ),
            Endpoint(
                "POST", "/v1/complete", self.complete, "anthropic", max_body_bytes=0, infers=True,
                parameters=VERSIONS,
                request=anthropic_complete.CompleteRequest,
                outcomes=(Outcome("the completion", shapes.CompleteAnswer),
                          Outcome("with `stream`, its events", media=EVENTS)),
                example={"model": "echo", "max_tokens_to_sample": 64,
                         "prompt": "\n\nHuman: hello\n\nAssistant:"},
            ),
        ]  # fmt: skip

    def messages(self, exchange: Exchange) -> None:
        """Answer a conversation, streamed or not."""
        _MESSAGES.run(self._gateway, exchange)

    def count(self, exchange: Exchange) -> None:
        """Count a conversation's tokens; only a backend of the same dialect can."""
        _COUNT.run(self._gateway, exchange)

    def complete(self, exchange: Exchange) -> None:
        """Continue a transcript, streamed or not; the API before messages."""
        _COMPLETE.run(self._gateway, exchange)


class AnthropicDelivery(Delivery):
    """Delivery to an Anthropic SDK, which reads ``request-id``."""

    __slots__ = ()

    id_line: ClassVar[bytes] = b"request-id: %b\r\n"

    def lines(self, reply: Reply | None) -> bytes:
        """The gateway's own response header lines."""
        call = self.call
        return self.id_line % (call.client_request_id or call.id).encode() + super().lines(reply)


_MESSAGES: Final = Way(
    Dialect.ANTHROPIC_MESSAGES, dialect.decode_request, AnthropicDelivery, _FORWARDED
)
_COUNT: Final = Way(
    Dialect.ANTHROPIC_COUNT, dialect.decode_count_request, AnthropicDelivery, _FORWARDED
)
_COMPLETE: Final = Way(
    Dialect.ANTHROPIC_COMPLETE, anthropic_complete.decode_request, AnthropicDelivery, _FORWARDED
)


FEATURE = Feature(Config, AnthropicApi)
