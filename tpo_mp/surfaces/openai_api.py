"""The OpenAI family: chat completions and models.

Source: OpenAI API reference; error envelope and headers as its SDKs read them.
"""

from __future__ import annotations

from time import time

import orjson
from msgspec import Struct

from tpo_mp.dialects import openai_chat as dialect
from tpo_mp.errors import NotFound
from tpo_mp.http.endpoints import Endpoint
from tpo_mp.http.exchange import Exchange, id_line
from tpo_mp.pipeline.delivery import Delivery
from tpo_mp.pipeline.gateway import Gateway
from tpo_mp.ports import Env, Feature


class Config(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """No options."""


class OpenAIApi:
    """Routes under ``/v1`` that OpenAI clients call."""

    def __init__(self, config: Config, env: Env) -> None:
        self._started = int(time())
        self._gateway: Gateway

    def endpoints(self, gateway: Gateway) -> list[Endpoint]:
        """The routes of this surface."""
        self._gateway = gateway
        return [
            Endpoint("POST", "/v1/chat/completions", self.chat, "openai", max_body_bytes=0),
            Endpoint("GET", "/v1/models", self.models, "openai"),
            Endpoint("GET", "/v1/models/{model}", self.model, "openai"),
        ]

    def chat(self, exchange: Exchange) -> None:
        """Run one chat completion, streamed or not."""
        body = exchange.body
        request = dialect.decode_request(body)
        if request.has_routing_fields():
            body = dialect.strip_routing_fields(body)
        affinity = request.prompt_cache_key
        if affinity is None:
            affinity = _user_id(request.metadata) or request.user
        call = self._gateway.new_call(
            exchange, model=request.model, body=body, stream=bool(request.stream), affinity=affinity
        )
        options = request.stream_options
        call.usage_wanted = options is not None and bool(options.include_usage)
        self._gateway.submit(Delivery(self._gateway, exchange, call))

    async def models(self, exchange: Exchange) -> None:
        """List every model a client may name."""
        data = [self._entry(name) for name in await self._gateway.models()]
        body = orjson.dumps({"object": "list", "data": data})
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
        return {"id": name, "object": "model", "created": self._started, "owned_by": "tpo-mp"}


def _user_id(metadata: object) -> str | None:
    user = metadata.get("user_id") if isinstance(metadata, dict) else None
    return user if isinstance(user, str) and user else None


FEATURE = Feature(Config, OpenAIApi)
