"""Bodies of vLLM's own routes, as the API description shows them.

Source: vLLM's documentation of its API server (v0.16, 2026); sleep and caches as of v0.32.
"""

from __future__ import annotations

from typing import Any, Literal

from msgspec import Struct


class TokenizeRequest(Struct, kw_only=True):
    """vLLM's question for tokens: a `prompt`, or `messages` with `tools`."""

    model: str | None = None
    prompt: str | None = None
    messages: list[dict[str, Any]] | None = None
    tools: list[dict[str, Any]] | None = None
    add_generation_prompt: bool = True
    add_special_tokens: bool = True
    return_token_strs: bool = False


class TokenizeAnswer(Struct):
    """The tokens of a text, in its order."""

    count: int
    max_model_len: int
    tokens: list[int]
    token_strs: list[str] | None


class DetokenizeRequest(Struct, kw_only=True):
    """vLLM's question for the text of tokens."""

    tokens: list[int]
    model: str | None = None


class DetokenizeAnswer(Struct):
    """The text of tokens."""

    prompt: str


class ServerLoad(Struct):
    """How many calls are under way."""

    server_load: int


class LoadAdapter(Struct, kw_only=True):
    """A LoRA adapter to load; `base_model_name` is the model it is for, the first if left out."""

    lora_name: str
    lora_path: str
    base_model_name: str | None = None
    load_inplace: bool = False


class UnloadAdapter(Struct, kw_only=True):
    """A LoRA adapter to unload."""

    lora_name: str


class Slept(Struct):
    """The engines sleep, so deep."""

    status: Literal["sleeping"]
    level: int


class Woken(Struct):
    """Whether the engines are wholly awake; `tags` are those that were asked for."""

    status: Literal["awake", "sleeping"]
    tags: list[str] | None


class CacheReset(Struct):
    """Whether the caches are empty now."""

    success: bool


class Sleeping(Struct):
    """Whether the engines sleep."""

    is_sleeping: bool
