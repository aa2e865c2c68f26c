"""What clients of local engines share: the OpenAI dialect, health and metrics of an engine."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, ClassVar, Final

from msgspec import Meta

from tpo_mp.pipeline.http_backend import HttpBackend, HttpBackendConfig, chosen_paths
from tpo_mp.pipeline.reworded import Worded
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
    OWN_API: ClassVar[str] = ""
    """What ``apis`` calls completions in the engine's own words."""
    include_usage: Annotated[
        bool, Meta(description="Ask streams for token counts when the client did not.")
    ] = True

    @classmethod
    def known_apis(cls) -> tuple[str, ...]:
        """OpenAI's, and completions in its own words."""
        return (*APIS, cls.OWN_API) if cls.OWN_API else tuple(APIS)

    def problems(self) -> Iterable[tuple[str, str]]:
        """APIs that it has not, or of which one would hide the other."""
        yield from super().problems()
        if self.OWN_API and {"completions", self.OWN_API} <= {*self.apis}:
            yield "apis", f"'completions' or '{self.OWN_API}': only one of them is asked"


class EngineClient(HttpBackend):
    """A backend that tells its engine more than the client said (``fields``)."""

    adds_fields = True
    OWN: ClassVar[tuple[str, Worded] | None] = None
    """Path and wording of the engine's own completions (``OWN_API``)."""

    def __init__(self, config: EngineClientConfig, env: Env) -> None:
        path, worded = self.OWN or ("", None)
        asked = worded is not None and config.OWN_API in config.apis
        own = {config.OWN_API: (Dialect.OPENAI_COMPLETIONS, path)} if asked else {}
        super().__init__(
            config,
            env,
            paths=chosen_paths(config, APIS | own, DEFAULT_APIS),
            worded={Dialect.OPENAI_COMPLETIONS: worded} if worded and asked else None,
            auth="authorization: Bearer {}",
            include_usage=config.include_usage,
        )
