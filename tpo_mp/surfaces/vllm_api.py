"""What vLLM serves beside OpenAI's API: tokens of a text, text of tokens, calls under way.

``tpo-mp simulate`` serves it; in a gateway it is served where ``[surfaces.vllm_api]`` stands, for
the models of its simulators.  Tokens are those that ``usage`` counts; a number means the same on
every worker and to every model.

Source: vLLM's API server, ``/tokenize``, ``/detokenize`` and ``/load`` (documentation of v0.16,
2026): field names and defaults.

Invariants: ``/detokenize`` of what ``/tokenize`` made of a prompt is that prompt; the loop is never
held for longer than a few hundred tokens take.
Known weakness: no special token is added to a prompt, and chat templates are this vocabulary's own;
beyond 65 536 characters ``usage`` estimates, and the tokens here are all of them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator
from fnmatch import fnmatchcase
from itertools import islice
from typing import Any, Final

import orjson
from msgspec import Struct

from tpo_mp.dialects import openai_chat, vllm_shapes
from tpo_mp.dialects.body import Fields, parse
from tpo_mp.errors import InvalidRequest, NotFound
from tpo_mp.http.endpoints import Endpoint, Outcome
from tpo_mp.http.exchange import Exchange, id_line
from tpo_mp.pipeline.gateway import Gateway
from tpo_mp.ports import Env, Feature
from tpo_mp.simulator import live_options, stats, vocabulary
from tpo_mp.simulator.catalog import traits_of
from tpo_mp.simulator.engine_options import all_engines
from tpo_mp.simulator.live import read_state
from tpo_mp.simulator.options import SimulatorOptions
from tpo_mp.simulator.timing import Latency

AT_ONCE: Final = 256
MOST_TOKENS: Final = 1_048_576
"""Tokens of a ``/detokenize``, and the context of a model that nobody knows."""
_REFUSED: Final = ("chat_template", "continue_final_message", "mm_processor_kwargs")
_IGNORED: Final = ("add_special_tokens", "chat_template_kwargs")


class Config(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """No options."""


class VllmApi:
    """Routes at the root, where vLLM has them."""

    def __init__(self, config: Config, env: Env) -> None:
        self._env = env
        self._gateway: Gateway

    def endpoints(self, gateway: Gateway) -> list[Endpoint]:
        """The routes of this surface."""
        self._gateway = gateway
        return [
            Endpoint(
                "POST", "/tokenize", self.tokenize, "openai", max_body_bytes=0, errors=(404,),
                request=vllm_shapes.TokenizeRequest, example={"prompt": "three little words"},
                outcomes=(Outcome("the tokens", vllm_shapes.TokenizeAnswer),),
            ),
            Endpoint(
                "POST", "/detokenize", self.detokenize, "openai", max_body_bytes=0, errors=(404,),
                request=vllm_shapes.DetokenizeRequest, example={"tokens": []},
                outcomes=(Outcome("the text", vllm_shapes.DetokenizeAnswer),),
            ),
            Endpoint("GET", "/load", self.load, "openai",
                     outcomes=(Outcome("the number", vllm_shapes.ServerLoad),)),
        ]  # fmt: skip

    async def tokenize(self, exchange: Exchange) -> None:
        """Cut a text or a conversation into the tokens that usage counts."""
        fields = Fields(parse(exchange.body))
        model, longest = self._model(fields.text("model"))
        shown = fields.flag("return_token_strs")
        found = _tokens_of(fields, model)
        numbers: list[bytes] = []
        texts: list[bytes] = []
        counted = 0
        while some := list(islice(found, AT_ONCE)):
            counted += len(some)
            numbers.append(orjson.dumps([number for number, _ in some])[1:-1])
            if shown:
                texts.append(orjson.dumps([text for _, text in some])[1:-1])
            await asyncio.sleep(0)
        told = b'{"count":%d,"max_model_len":%d,"tokens":[%b],"token_strs":%b}' % (
            counted, longest, b",".join(numbers),
            b"[%b]" % b",".join(texts) if shown else b"null",
        )  # fmt: skip
        exchange.respond(200, told, extra=id_line(exchange.head))

    async def detokenize(self, exchange: Exchange) -> None:
        """Put the text of tokens together."""
        fields = Fields(parse(exchange.body))
        self._model(fields.text("model"))
        given = fields.take("tokens")
        if not isinstance(given, list):
            raise InvalidRequest("tokens must be a list of token numbers", param="tokens")
        if len(given) > MOST_TOKENS:
            raise InvalidRequest(f"tokens must be at most {MOST_TOKENS}", param="tokens")
        parts: list[str] = []
        for start in range(0, len(given), AT_ONCE):
            parts += _texts(given[start : start + AT_ONCE], start)
            await asyncio.sleep(0)
        told = orjson.dumps({"prompt": "".join(parts)})
        exchange.respond(200, told, extra=id_line(exchange.head))

    async def load(self, exchange: Exchange) -> None:
        """Count the simulated calls under way on this host."""
        collect = self._gateway.metrics_arena.collect
        families = await asyncio.get_running_loop().run_in_executor(None, collect)
        _, _, active = stats.totals(families, self._env.clock())
        told = orjson.dumps({"server_load": active})
        exchange.respond(200, told, extra=id_line(exchange.head))

    def _model(self, name: str | None) -> tuple[str, int]:
        """The model that is meant and its context; raises ``NotFound``."""
        _, state = read_state(self._env.live)
        for config in live_options.simulators(self._gateway.config.backends):
            if not isinstance(config, SimulatorOptions):
                continue
            model = config.models[0] if name is None else name
            if any(fnmatchcase(model, known) for known in config.models):
                return model, _context(model, live_options.effective(config, state.options))
        if name is None:
            return "", MOST_TOKENS  # no simulator is there, and the numbers are the same to all
        said = f"The model {name[:120]!r} does not exist."
        raise NotFound(said, reason="model_not_found", param="model")


def _context(model: str, options: SimulatorOptions) -> int:
    engine = all_engines(options.engines).get(Latency(options.latency, []).name_of(model))
    if engine is not None:
        return engine.shape().max_model_tokens
    return traits_of(model).context or MOST_TOKENS


def _tokens_of(fields: Fields, model: str) -> Iterator[tuple[int, str]]:
    for name in _REFUSED:
        if fields.take(name):
            raise InvalidRequest(f"{name} is not supported here", param=name)
    for name in _IGNORED:
        fields.take(name)
    messages, opening = fields.take("messages"), fields.flag("add_generation_prompt")
    if messages is None:
        return vocabulary.words(fields.need_text("prompt"))
    body: dict[str, Any] = {"model": model, "messages": messages}
    if tools := fields.take("tools"):
        body["tools"] = tools
    request = openai_chat.request_to_canonical(orjson.dumps(body))
    return vocabulary.conversation(request, opening=opening is not False)


def _texts(numbers: Iterable[Any], start: int) -> Iterator[str]:
    for index, number in enumerate(numbers, start):
        if type(number) is not int:
            raise InvalidRequest(f"tokens[{index}] must be an integer", param=f"tokens[{index}]")
        try:
            yield vocabulary.text_of(number)
        except ValueError as error:
            said = f"tokens[{index}]: {error}"
            raise InvalidRequest(said, param=f"tokens[{index}]") from None


FEATURE = Feature(Config, VllmApi)
