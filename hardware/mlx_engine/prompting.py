"""Turns a request into tokens and an order for the generation, or says what is wrong with it."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Final, TypeVar

import orjson

from tpo_mp.dialects import openai_chat, openai_completions
from tpo_mp.dialects.canonical import ImageBlock, ModelRequest, OpaqueBlock, ToolResultBlock
from tpo_mp.errors import InvalidRequest

from .job import MOST_TOP, Leaning, Sampling
from .loading import Loaded

MOST_CHOICES: Final = 16
N = TypeVar("N", int, float)


@dataclass(frozen=True, slots=True)
class Order:
    """What is generated for one request."""

    tokens: list[int]
    most: int
    choices: int
    sampling: Sampling
    leaning: Leaning
    tops: int | None
    stops: tuple[str, ...]
    ignore_eos: bool
    tools: list[dict[str, Any]] | None


class Prompting:
    """Reads requests beside the loop: templates and tokenizers take milliseconds."""

    def __init__(self, loaded: Loaded, context: int) -> None:
        self._tokenizer = loaded.tokenizer
        self._vocabulary = loaded.vocabulary
        self._context = context
        # One: a tokenizer is not for two threads at a time.
        self._aside = ThreadPoolExecutor(1, thread_name_prefix="prompting")

    def close(self) -> None:
        """Take no more."""
        self._aside.shutdown(wait=False, cancel_futures=True)

    async def order(self, request: ModelRequest) -> Order:
        """Read a request; raises ``InvalidRequest`` naming the field."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._aside, self._order, request)

    def _order(self, request: ModelRequest) -> Order:
        _refuse(request)
        tools: list[dict[str, Any]] | None = None
        if request.source == openai_completions.NAME:
            words = "".join(b.text for m in request.messages for b in m.blocks)  # type: ignore[union-attr]
            tokens = self._tokenizer.encode(words)
            param = "prompt"
        else:
            tokens, tools = self._chat(request)
            param = "messages"
        if not tokens:
            raise InvalidRequest("the prompt has no tokens", param=param)
        return Order(
            tokens=tokens,
            most=self._most(request, len(tokens), param),
            choices=_within(request.n or 1, 1, MOST_CHOICES, "n"),
            sampling=_sampling(request),
            leaning=_leaning(request, self._vocabulary),
            tops=_tops(request.logprobs),
            stops=request.stop,
            ignore_eos=bool(request.extra.get("ignore_eos", False)),
            tools=tools,
        )

    def _chat(self, request: ModelRequest) -> tuple[list[int], list[dict[str, Any]] | None]:
        """The tokens of a conversation in the model's own template."""
        said = orjson.loads(openai_chat.request_from_canonical(request))
        messages, tools = said["messages"], said.get("tools")
        for message in messages:
            content = message.get("content")
            if isinstance(content, list):
                message["content"] = "".join(part.get("text", "") for part in content)
            elif content is None:
                message["content"] = ""
            for call in message.get("tool_calls") or ():
                call["function"]["arguments"] = _object(call["function"].get("arguments"))
        if request.tool_choice is not None and request.tool_choice.mode == "none":
            tools = None
        if tools and not self._tokenizer.has_tool_calling:
            raise InvalidRequest("this model's template has no tool calls", param="tools")
        if not self._tokenizer.has_chat_template:
            raise InvalidRequest(
                "this model has no chat template: ask /v1/completions", param="messages"
            )
        options = request.extra.get("chat_template_kwargs")
        try:
            tokens = self._tokenizer.apply_chat_template(
                messages, tools=tools, add_generation_prompt=True,
                **(options if isinstance(options, dict) else {}),
            )  # fmt: skip
        except Exception as e:  # templates raise what they like, of what they were given
            said = str(e).strip().splitlines() or [type(e).__name__]
            raise InvalidRequest(
                f"the model's chat template refuses this conversation: {said[0]}"[:300],
                param="messages",
            ) from e
        return list(tokens), tools

    def _most(self, request: ModelRequest, prompt: int, param: str) -> int:
        room = self._context - prompt
        wanted = request.max_tokens if request.max_tokens is not None else max(room, 1)
        if wanted < 1:
            raise InvalidRequest("max_tokens must be at least 1", param="max_tokens")
        if wanted > room:
            raise InvalidRequest(
                f"This model's maximum context length is {self._context} tokens. However, you "
                f"requested {prompt + wanted} tokens ({prompt} in the {param}, {wanted} in the "
                "completion).",
                reason="context_length_exceeded",
                param=param,
            )
        return wanted


def _refuse(request: ModelRequest) -> None:
    """What cannot be done here, rather than leave it out silently."""
    if request.response_format is not None:
        raise InvalidRequest("this engine has no structured output", param="response_format")
    if request.tool_choice is not None and request.tool_choice.mode not in ("auto", "none"):
        raise InvalidRequest("this engine cannot force a tool call", param="tool_choice")
    for message in request.messages:
        for j, block in enumerate(message.blocks):
            inner = block.content if isinstance(block, ToolResultBlock) else (block,)
            if any(isinstance(one, ImageBlock | OpaqueBlock) for one in inner):
                raise InvalidRequest(
                    "this engine takes text only", param=f"{message.path}.content[{j}]"
                )


def _sampling(request: ModelRequest) -> Sampling:
    temperature = 1.0 if request.temperature is None else request.temperature
    min_p = _number(request, "min_p", 0.0, 0.0, 1.0)
    top_k = request.top_k if request.top_k is not None and request.top_k > 0 else 0
    top_p = 1.0 if request.top_p is None or not request.top_p else request.top_p
    return Sampling(
        _within(temperature, 0.0, 2.0, "temperature"), _within(top_p, 0.0, 1.0, "top_p"), top_k,
        min_p, request.seed,
    )  # fmt: skip


def _leaning(request: ModelRequest, vocabulary: int) -> Leaning:
    bias = []
    for key, value in (request.logit_bias or {}).items():
        token = int(key) if key.isascii() and key.isdigit() else -1
        if not 0 <= token < vocabulary or not isinstance(value, int | float):
            raise InvalidRequest(
                f"not a token of this model ({vocabulary} tokens) and a number",
                param=f"logit_bias.{key[:32]}",
            )
        bias.append((token, _within(float(value), -100.0, 100.0, f"logit_bias.{key}")))
    return Leaning(
        repetition=_number(request, "repetition_penalty", 1.0, 0.01, 10.0),
        presence=_within(request.presence_penalty or 0.0, -2.0, 2.0, "presence_penalty"),
        frequency=_within(request.frequency_penalty or 0.0, -2.0, 2.0, "frequency_penalty"),
        bias=tuple(bias),
    )


def _tops(wanted: int | None) -> int | None:
    return None if wanted is None else _within(wanted, 0, MOST_TOP, "top_logprobs")


def _number(request: ModelRequest, name: str, default: float, low: float, high: float) -> float:
    value = request.extra.get(name)
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise InvalidRequest(f"{name} must be a number", param=name)
    return _within(float(value), low, high, name)


def _within(value: N, low: N, high: N, name: str) -> N:
    if not low <= value <= high:
        raise InvalidRequest(f"{name} must be from {low} to {high}", param=name)
    return value


def _object(arguments: object) -> object:
    """A call's arguments as templates want them; what is no JSON stays as it was said."""
    if not isinstance(arguments, str):
        return arguments
    try:
        return orjson.loads(arguments)
    except orjson.JSONDecodeError:
        return arguments
