"""What a provider's answers have beyond the dialect's core: fingerprints, tiers, whole usage.

Source: OpenAI and Anthropic API references and the types of their SDKs.
"""

from __future__ import annotations

from functools import lru_cache
from hashlib import blake2b
from typing import Any, Final

import orjson

from tpo_mp.dialects import anthropic_messages_body, openai_wire
from tpo_mp.dialects.canonical import ModelReply, ModelRequest, TextBlock, TokenUsage
from tpo_mp.types import Dialect

OPENAI_LEGACY: Final = (Dialect.OPENAI_CHAT, Dialect.OPENAI_COMPLETIONS)
"""The dialects whose streams show usage in a chunk of its own."""


def reply_extra(dialect: Dialect, request: ModelRequest, reply: ModelReply) -> dict[str, Any]:
    """Fields of a whole reply."""
    usage = reply.usage or TokenUsage()
    if dialect in OPENAI_LEGACY:
        return _tier(dialect, reply.model) | {"usage": openai_usage(usage)}
    if dialect is Dialect.OPENAI_RESPONSES:
        return _response_fields(request)
    if dialect is Dialect.ANTHROPIC_MESSAGES:
        return {"usage": _anthropic_usage(usage)}
    return {}


def plain_chat(reply: ModelReply) -> bytes | None:
    """A chat's whole reply when it is one text and nothing else; None: it is more than that.

    It is what the codec writes with ``reply_extra``, byte for byte, without steps between.
    """
    usage = reply.usage
    if len(reply.choices) != 1 or usage is None:
        return None
    choice = reply.choices[0]
    if len(choice.blocks) != 1 or choice.logprobs is not None or choice.stop is None:
        return None
    said = choice.blocks[0]
    if type(said) is not TextBlock:
        return None
    return orjson.dumps(
        {
            "id": reply.id,
            "object": "chat.completion",
            "created": reply.created,
            "model": reply.model,
            "choices": [
                {
                    "index": 0,
                    "message": {"role": "assistant", "content": said.text, "refusal": None},
                    "logprobs": None,
                    "finish_reason": openai_wire.FINISH_OF_STOP[choice.stop],
                }
            ],
            "usage": openai_usage(usage),
            "service_tier": "default",
            "system_fingerprint": _fingerprint(reply.model),
        }
    )


def start_extra(dialect: Dialect, request: ModelRequest, reply: ModelReply) -> dict[str, Any]:
    """Fields of a stream's beginning, or of each of its chunks where the dialect repeats them."""
    usage = reply.usage or TokenUsage()
    if dialect in OPENAI_LEGACY:
        tier = _tier(dialect, reply.model)
        return tier | {"usage": None} if request.usage_wanted else tier
    if dialect is Dialect.OPENAI_RESPONSES:
        return _response_fields(request)
    if dialect is Dialect.ANTHROPIC_MESSAGES:
        begun = TokenUsage(usage.prompt, 1, usage.cached, usage.cache_write)
        return {"usage": _anthropic_usage(begun)}
    return {}


def begun_usage(dialect: Dialect, reply: ModelReply) -> TokenUsage | None:
    """What a stream's beginning tells of its counts, where each event repeats the prompt's."""
    usage = reply.usage
    if dialect is not Dialect.GEMINI or usage is None:
        return None
    return TokenUsage(usage.prompt, 0, usage.cached)


def usage_chunk(dialect: Dialect, reply: ModelReply, usage: TokenUsage) -> bytes:
    """The chunk that ``stream_options.include_usage`` asks for."""
    chat = dialect is Dialect.OPENAI_CHAT
    chunk = {
        "id": reply.id,
        "object": "chat.completion.chunk" if chat else "text_completion",
        "created": reply.created,
        "model": reply.model,
        **_tier(dialect, reply.model),
        "choices": [],
        "usage": openai_usage(usage),
    }
    return openai_wire.data_event(chunk)


def openai_usage(usage: TokenUsage) -> dict[str, Any]:
    """Counts with all their details."""
    return openai_wire.usage_out(usage) | {
        "prompt_tokens_details": {"cached_tokens": usage.cached, "audio_tokens": 0},
        "completion_tokens_details": {
            "reasoning_tokens": usage.reasoning,
            "audio_tokens": 0,
            "accepted_prediction_tokens": 0,
            "rejected_prediction_tokens": 0,
        },
    }


def _tier(dialect: Dialect, model: str) -> dict[str, Any]:
    """Who served it: one fingerprint per model; legacy completions know no tier."""
    fingerprint = _fingerprint(model)
    if dialect is Dialect.OPENAI_CHAT:
        return {"service_tier": "default", "system_fingerprint": fingerprint}
    return {"system_fingerprint": fingerprint}


@lru_cache(maxsize=256)
def _fingerprint(model: str) -> str:
    return "fp_" + blake2b(model.encode(), digest_size=5).hexdigest()


def _anthropic_usage(usage: TokenUsage) -> dict[str, Any]:
    return anthropic_messages_body.usage_out(usage) | {
        "cache_creation": {
            "ephemeral_5m_input_tokens": usage.cache_write,
            "ephemeral_1h_input_tokens": 0,
        },
        "service_tier": "standard",
    }


def _response_fields(request: ModelRequest) -> dict[str, Any]:
    """The settings a response object repeats."""
    reasoning = request.reasoning
    summary = ((reasoning.extra if reasoning else None) or {}).get("summary")
    form = request.response_format
    text: dict[str, Any] = {"type": "text"}
    if form is not None:
        text = {"type": "json_object"}
        if form.schema is not None:
            text = {
                "type": "json_schema",
                "name": form.name or "answer",
                "description": form.description,
                "schema": form.schema,
                "strict": True if form.strict is None else form.strict,
            }
    return {
        "background": False,
        "max_tool_calls": None,
        "previous_response_id": request.extra.get("previous_response_id"),
        "prompt_cache_key": request.cache_key,
        "reasoning": {"effort": reasoning.effort if reasoning else None, "summary": summary},
        "safety_identifier": None,
        "service_tier": "default",
        "store": request.hints.get("store", request.extra.get("store", True)),
        "text": {"format": text, "verbosity": request.verbosity or "medium"},
        "top_logprobs": request.logprobs or 0,
        "truncation": request.extra.get("truncation") or "disabled",
        "user": request.user,
    }
