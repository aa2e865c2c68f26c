"""Requests for the simulator's tests, read as a client's body is."""

from __future__ import annotations

import json
from collections.abc import Generator
from typing import Any, TypeVar

from tpo_mp.dialects import support
from tpo_mp.dialects.canonical import ModelRequest

T = TypeVar("T")


def request_of(body: dict[str, Any], dialect: str = "openai_chat") -> ModelRequest:
    """A body as the canonical request."""
    return support.codec(dialect).request_to_canonical(json.dumps(body).encode())


def asked(text: str = "hello", **more: Any) -> ModelRequest:
    """A chat request with one message."""
    messages = [{"role": "user", "content": text}]
    return request_of({"model": "gpt-4o", "messages": messages} | more)


def finished(steps: Generator[None, None, T]) -> T:
    """What a generator of steps answers at its end."""
    while True:
        try:
            next(steps)
        except StopIteration as done:
            value: T = done.value
            return value
