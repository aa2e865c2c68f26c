"""Any OpenAI-compatible server: chat, completions, embeddings and responses, whole and streamed.

``apis`` says which of them the server has; what it lacks is said in chat completions instead.
"""

from __future__ import annotations

from typing import Annotated
from urllib.parse import urlsplit

from msgspec import Meta

from tpo_mp.pipeline.http_backend import HttpBackend, HttpBackendConfig, chosen_paths
from tpo_mp.ports import Env, Feature
from tpo_mp.types import Dialect

APIS = {
    "chat": (Dialect.OPENAI_CHAT, "chat/completions"),
    "completions": (Dialect.OPENAI_COMPLETIONS, "completions"),
    "embeddings": (Dialect.OPENAI_EMBEDDINGS, "embeddings"),
    "responses": (Dialect.OPENAI_RESPONSES, "responses"),
}
DEFAULT_APIS = ("chat", "completions", "embeddings")
OWN_HOST = "api.openai.com"


class Config(HttpBackendConfig, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Options of a backend of kind ``openai``."""

    base_url: Annotated[str, Meta(description="Where the API lives, version path included.")] = (
        f"https://{OWN_HOST}/v1"
    )
    include_usage: Annotated[
        bool, Meta(description="Ask streams for token counts when the client did not.")
    ] = True

    @classmethod
    def known_apis(cls) -> tuple[str, ...]:
        """What its server may have."""
        return tuple(APIS)


class OpenAIBackend(HttpBackend):
    """One upstream speaking the OpenAI API."""

    def __init__(self, config: Config, env: Env) -> None:
        own = urlsplit(config.base_url).hostname == OWN_HOST
        super().__init__(
            config,
            env,
            paths=chosen_paths(config, APIS, tuple(APIS) if own else DEFAULT_APIS),
            auth="authorization: Bearer {}",
            include_usage=config.include_usage,
        )


FEATURE = Feature(Config, OpenAIBackend)
