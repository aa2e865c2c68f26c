"""The OpenAI family: chat completions, legacy completions, embeddings and models.

Models are told in the fields of both families at once, since both list them at one path.

Source: OpenAI API reference; error envelope and headers as its SDKs read them.
"""

from __future__ import annotations

from datetime import UTC, datetime
from time import time
from typing import Final

import orjson
from msgspec import Struct

from tpo_mp.dialects import openai_chat, openai_completions, openai_embeddings, shapes
from tpo_mp.errors import NotFound
from tpo_mp.http.endpoints import EVENTS, Endpoint, Outcome
from tpo_mp.http.exchange import Exchange, id_line
from tpo_mp.pipeline.gateway import Gateway
from tpo_mp.pipeline.ways import Way
from tpo_mp.ports import Env, Feature
from tpo_mp.types import Dialect

_RFC3339 = "%Y-%m-%dT%H:%M:%SZ"
_CHAT: Final = Way(Dialect.OPENAI_CHAT, openai_chat.decode_request)
_COMPLETIONS: Final = Way(Dialect.OPENAI_COMPLETIONS, openai_completions.decode_request)
_EMBEDDINGS: Final = Way(Dialect.OPENAI_EMBEDDINGS, openai_embeddings.decode_request)


class Config(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """No options."""


class OpenAIApi:
    """Routes under ``/v1`` that OpenAI clients call."""

    def __init__(self, config: Config, env: Env) -> None:
        self._started = int(time())
        self._started_at = datetime.fromtimestamp(self._started, UTC).strftime(_RFC3339)
        self._gateway: Gateway

    def endpoints(self, gateway: Gateway) -> list[Endpoint]:
        """The routes of this surface."""
        self._gateway = gateway
        return [
            Endpoint(
                "POST", "/v1/chat/completions", self.chat, "openai", max_body_bytes=0, infers=True,
                request=openai_chat.ChatRequest,
                outcomes=(Outcome("the completion", shapes.ChatCompletion),
                          Outcome("with `stream`, its chunks, then `[DONE]`", media=EVENTS)),
                example={"model": "echo", "messages": [{"role": "user", "content": "hello"}]},
            ),
            Endpoint(
                "POST", "/v1/completions", self.completions, "openai", max_body_bytes=0,
                infers=True, request=openai_completions.CompletionRequest,
                outcomes=(Outcome("the completion", shapes.TextCompletion),
                          Outcome("with `stream`, its chunks, then `[DONE]`", media=EVENTS)),
                example={"model": "echo", "prompt": "hello"},
            ),
            Endpoint(
                "POST", "/v1/embeddings", self.embeddings, "openai", max_body_bytes=0, infers=True,
                request=openai_embeddings.EmbeddingsRequest,
                outcomes=(Outcome("one vector per input", shapes.EmbeddingList),),
                example={"model": "text-embedding-3-small", "input": ["hello", "world"]},
            ),
            Endpoint("GET", "/v1/models", self.models, "openai",
                     outcomes=(Outcome("the list", shapes.ModelList),)),
            Endpoint("GET", "/v1/models/{model}", self.model, "openai",
                     example_path="/v1/models/echo",
                     outcomes=(Outcome("the model", shapes.ModelCard),)),
        ]  # fmt: skip

    def chat(self, exchange: Exchange) -> None:
        """Run one chat completion, streamed or not."""
        _CHAT.run(self._gateway, exchange)

    def completions(self, exchange: Exchange) -> None:
        """Run one legacy completion, streamed or not."""
        _COMPLETIONS.run(self._gateway, exchange)

    def embeddings(self, exchange: Exchange) -> None:
        """Embed texts with a backend that can."""
        _EMBEDDINGS.run(self._gateway, exchange)

    async def models(self, exchange: Exchange) -> None:
        """List every model a client may name."""
        data = [self._entry(name) for name in await self._gateway.models()]
        body = orjson.dumps(
            {
                "object": "list",
                "data": data,
                "has_more": False,
                "first_id": data[0]["id"] if data else None,
                "last_id": data[-1]["id"] if data else None,
            }
        )
        exchange.respond(200, body, extra=id_line(exchange.head))

    async def model(self, exchange: Exchange) -> None:
        """Describe one model; any name a backend serves is known."""
        name = exchange.head.params["model"]
        if not self._gateway.knows_model(name):
            raise NotFound(
                f"the model {name[:120]!r} does not exist", reason="model_not_found", param="model"
            )
        exchange.respond(200, orjson.dumps(self._entry(name)), extra=id_line(exchange.head))

    def _entry(self, name: str) -> dict[str, object]:
        card: dict[str, object] = {
            "id": name,
            "object": "model",
            "created": self._started,
            "owned_by": "tpo-mp",
            "type": "model",
            "display_name": name,
            "created_at": self._started_at,
        }
        adapter = self._gateway.adapter(name)
        if adapter is not None:
            card["parent"], card["root"] = adapter
        return card


FEATURE = Feature(Config, OpenAIApi)
