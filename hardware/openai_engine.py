"""What clients of local engines share: the OpenAI dialect, health and metrics of an engine."""

from __future__ import annotations

from typing import Annotated, ClassVar, Final

from msgspec import Meta

from tpo_mp.pipeline.http_backend import HttpBackend, HttpBackendConfig, chosen_paths
from tpo_mp.ports import Env
from tpo_mp.types import Dialect

APIS: Final = {
    "chat": (Dialect.OPENAI_CHAT, "chat/completions"),
    "completions": (Dialect.OPENAI_COMPLETIONS, "completions"),
    "embeddings": (Dialect.OPENAI_EMBEDDINGS, "embeddings"),
    "responses": (Dialect.OPENAI_RESPONSES, "responses"),
}
DEFAULT_APIS: Final = ("chat", "completions", "embeddings")


class EngineClientConfig(HttpBackendConfig, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Options of a client of an engine."""

    CHECKED: ClassVar[bool] = True
    HEALTH_PATH: ClassVar[str] = "/health"
    METRICS_PATH: ClassVar[str] = "/metrics"
    include_usage: Annotated[
        bool, Meta(description="Ask streams for token counts when the client did not.")
    ] = True


class EngineClient(HttpBackend):
    """A backend that tells its engine more than the client said (``fields``)."""

    adds_fields = True

    def __init__(self, config: EngineClientConfig, env: Env) -> None:
        super().__init__(
            config,
            env,
            paths=chosen_paths(config, APIS, DEFAULT_APIS),
            auth="authorization: Bearer {}",
            include_usage=config.include_usage,
        )
