"""Anthropic's API, or any server that speaks it: messages and token counting.

``apis`` says what the server has; legacy completions are said in messages unless it names them.

Source: Anthropic API reference; ``anthropic-version`` and ``anthropic-beta`` of the client are
forwarded, the configured version stands in when the client named none.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, ClassVar

from msgspec import Meta

from tpo_mp.pipeline.http_backend import HttpBackend, HttpBackendConfig, chosen_paths
from tpo_mp.ports import Env, Feature
from tpo_mp.types import Call, Dialect

APIS = {
    "messages": (Dialect.ANTHROPIC_MESSAGES, "messages"),
    "count_tokens": (Dialect.ANTHROPIC_COUNT, "messages/count_tokens"),
    "complete": (Dialect.ANTHROPIC_COMPLETE, "complete"),
}
DEFAULT_APIS = ("messages", "count_tokens")


class Config(HttpBackendConfig, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Options of a backend of kind ``anthropic``."""

    AUTH: ClassVar[tuple[str, str]] = ("x-api-key", "{}")

    base_url: Annotated[str, Meta(description="Where the API lives, version path included.")] = (
        "https://api.anthropic.com/v1"
    )
    version: Annotated[
        str,
        Meta(
            pattern=r"^\d{4}-\d{2}-\d{2}$(?!\n)",
            description="Sent as anthropic-version when the client named none.",
        ),
    ] = "2023-06-01"

    @classmethod
    def known_apis(cls) -> tuple[str, ...]:
        """What its server may have."""
        return tuple(APIS)

    def native_sampling(self) -> Mapping[str, object]:
        """Claude's own temperature, and room for its longer answers."""
        return {"max_tokens": 1024, "temperature": 1.0}


class AnthropicBackend(HttpBackend):
    """One upstream speaking the Anthropic API."""

    def __init__(self, config: Config, env: Env) -> None:
        super().__init__(
            config, env, paths=chosen_paths(config, APIS, DEFAULT_APIS), auth="x-api-key: {}"
        )
        self._version = b"anthropic-version: %b\r\n" % config.version.encode()

    def extra_lines(self, call: Call) -> bytes:
        """The client's own version and betas, or the configured version."""
        if b"anthropic-version:" in call.forward:
            return call.forward
        return call.forward + self._version

    def client_line(self, credential: bytes) -> bytes:
        """The caller's credential as this API wants it."""
        return b"x-api-key: %b\r\n" % credential.removeprefix(b"Bearer ")


FEATURE = Feature(Config, AnthropicBackend)
