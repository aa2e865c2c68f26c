"""An ``mlx_lm`` server: its OpenAI dialect, with what it does not bear kept from it.

It takes any model name that is not its own for one to fetch and load in place of its model, so
calls go under ``served_as`` unless ``model_map`` names theirs.  It refuses fields that are null,
breaks off a stream whose ``stream_options`` ask for nothing, answers one choice whatever ``n``
says, and leaves the tokens out of log probabilities unless the likeliest are asked for too.  Its
model list is empty, without being one, where it has never fetched a model.

Invariants: a name that a client chose is never told to the server unless the operator mapped it or
asked for that with an empty ``served_as``.
Known weakness: its replies are passed on as they are, so a log probability above temperature 0 has
the likeliest token beside it, ``response_format`` has no effect, and ``model`` is its own name.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, ClassVar, Final

from msgspec import Meta

from tpo_mp.dialects.body import parse
from tpo_mp.errors import BackendFailure, InvalidRequest
from tpo_mp.pipeline.http_backend import HttpBackend, HttpBackendConfig, chosen_paths
from tpo_mp.ports import Env, Feature
from tpo_mp.types import Call, Dialect

APIS: Final = {
    "chat": (Dialect.OPENAI_CHAT, "chat/completions"),
    "completions": (Dialect.OPENAI_COMPLETIONS, "completions"),
}
_LOOKED_FOR: Final = (b"null", b'"n"', b'"logprobs"', b'"stream_options"')
"""A body without any of these is passed on unread."""


class Config(HttpBackendConfig, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Options of a backend of kind ``mlx``."""

    CHECKED: ClassVar[bool] = True
    HEALTH_PATH: ClassVar[str] = "/health"
    base_url: Annotated[str, Meta(description="Where the API lives, version path included.")] = (
        "http://localhost:8080/v1"
    )
    served_as: Annotated[
        str,
        Meta(
            max_length=256,
            description="Model name that calls go under unless model_map names theirs, which is "
            "the server's model; empty: the client's own, which the server may fetch.",
        ),
    ] = "default_model"
    include_usage: Annotated[
        bool, Meta(description="Ask streams for token counts when the client did not.")
    ] = True

    @classmethod
    def known_apis(cls) -> tuple[str, ...]:
        """What its server may have."""
        return tuple(APIS)


class MlxBackend(HttpBackend):
    """One ``mlx_lm`` server."""

    adds_fields = True

    def __init__(self, config: Config, env: Env) -> None:
        super().__init__(
            config,
            env,
            paths=chosen_paths(config, APIS, tuple(APIS)),
            auth="authorization: Bearer {}",
            include_usage=config.include_usage,
        )
        self._mapped = config.model_map
        self._served_as = config.served_as

    def fields(self, call: Call) -> dict[str, object]:
        """What is said otherwise than the client did; raises ``InvalidRequest`` for ``n`` > 1."""
        told: dict[str, object] = {}
        if self._served_as and call.model not in self._mapped:
            told["model"] = self._served_as
        body = call.body
        if any(word in body for word in _LOOKED_FOR):
            told |= _borne(parse(body))
        return told

    async def list_models(self) -> Sequence[str]:
        """Ask ``GET /models``; none where the server has no list."""
        try:
            return await super().list_models()
        except BackendFailure as e:
            if e.reason != "bad_upstream_body":
                raise
            return []


def _borne(asked: dict[str, object]) -> dict[str, object]:
    """What of a body must be said otherwise; ``None`` leaves a field out."""
    told: dict[str, object] = {name: None for name, value in asked.items() if value is None}
    choices = asked.get("n")
    if isinstance(choices, int) and choices > 1:
        raise InvalidRequest("n: this backend answers one choice at a time", param="n")
    if asked.get("logprobs") is True and not asked.get("top_logprobs"):
        told["top_logprobs"] = 1
    options = asked.get("stream_options")
    if isinstance(options, dict) and "include_usage" not in options:
        told["stream_options"] = {**options, "include_usage": False}
    return told


FEATURE = Feature(Config, MlxBackend)
