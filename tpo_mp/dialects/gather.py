"""A stream of events put together to the whole reply its backend would have sent, same dialect.

Unlike a translation nothing is lost on the way: fields nobody here knows are joined by their type,
words to words, lists to lists, objects field by field, and the last word wins for the rest.

Source: OpenAI and Anthropic API references: chunks and their whole counterparts.
Known weakness: engines that leave something out of their streams (log probabilities, say) leave it
out here too.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import orjson

from tpo_mp.errors import BackendFailure, TpoError
from tpo_mp.types import Dialect

from .failure import bad_body, of_object

_WHOLE = frozenset(("role", "id", "type", "name", "object", "call_id", "status"))
"""Strings that are said whole, however often."""
_FIELD_OF_DELTA = {
    "text_delta": "text", "thinking_delta": "thinking", "signature_delta": "signature"
}  # fmt: skip
_NO_CONTENT = bad_body("a stream without a reply")


class Gatherer(Protocol):
    """The reply so far; ``error`` is what the stream itself told of."""

    error: TpoError | None

    def add(self, event: dict[str, Any]) -> None:
        """Take the next event; raises ``BackendFailure``, ``KeyError`` or ``TypeError``."""

    def body(self) -> bytes:
        """The whole reply; raises ``BackendFailure`` when there is none."""


def join(into: dict[str, Any], more: dict[str, Any]) -> None:
    """Join the fields of ``more`` to those of ``into``."""
    for key, value in more.items():
        known = into.get(key)
        if known is None or value is None:
            into[key] = known if value is None else value
        elif isinstance(value, str) and isinstance(known, str) and key not in _WHOLE:
            into[key] = known + value
        elif isinstance(value, list) and isinstance(known, list):
            into[key] = [*known, *value]
        elif isinstance(value, dict) and isinstance(known, dict):
            join(known, value)
        else:
            into[key] = value


class GatheredChoices:
    """Chunks of chat or legacy completions."""

    def __init__(self, kind: str) -> None:
        """``kind`` is the whole reply's ``object``."""
        self._kind = kind
        self._top: dict[str, Any] = {}
        self._choices: dict[int, dict[str, Any]] = {}
        self._calls: dict[int, dict[Any, dict[str, Any]]] = {}
        self.error: TpoError | None = None

    def add(self, event: dict[str, Any]) -> None:
        """Take one chunk."""
        if event.get("error"):
            self.error = of_object(event["error"])
            return
        for choice in event.pop("choices", None) or ():
            self._choice(choice)
        for key, value in event.items():
            if value is not None or key not in self._top:
                self._top[key] = value

    def _choice(self, choice: dict[str, Any]) -> None:
        index = choice.pop("index", 0)
        known = self._choices.setdefault(index, {"index": index})
        delta = choice.pop("delta", None)
        if delta is not None:
            message = known.setdefault("message", {"role": "assistant", "content": None})
            calls = delta.pop("tool_calls", None)
            join(message, delta)
            for call in calls or ():
                self._call(index, message, call)
        join(known, choice)

    def _call(self, choice: int, message: dict[str, Any], call: dict[str, Any]) -> None:
        """A piece of a tool call; engines that do not number them send each whole."""
        calls = self._calls.setdefault(choice, {})
        place = call.pop("index", None)
        if place is None:
            place = f"{len(calls)} of its own"
        known = calls.get(place)
        if known is None:
            known = calls[place] = {}
            message.setdefault("tool_calls", []).append(known)
        join(known, call)

    def body(self) -> bytes:
        """The whole completion."""
        if not self._choices:
            raise _NO_CONTENT
        choices = [{"finish_reason": None} | self._choices[i] for i in sorted(self._choices)]
        return orjson.dumps(self._top | {"object": self._kind, "choices": choices})


class GatheredMessage:
    """Events of Anthropic messages."""

    def __init__(self) -> None:
        self._message: dict[str, Any] = {}
        self._blocks: dict[int, dict[str, Any]] = {}
        self._inputs: dict[int, str] = {}
        self.error: TpoError | None = None

    def add(self, event: dict[str, Any]) -> None:
        """Take one event."""
        kind = event.get("type")
        if kind == "message_start":
            self._message = event["message"]
        elif kind == "content_block_start":
            self._blocks[event["index"]] = event["content_block"]
        elif kind == "content_block_delta":
            self._delta(event["index"], event["delta"])
        elif kind == "message_delta":
            self._message |= event["delta"]
            self._message["usage"] = self._message.get("usage", {}) | event.get("usage", {})
        elif kind == "error":
            self.error = of_object(event.get("error"))

    def _delta(self, index: int, delta: dict[str, Any]) -> None:
        block, kind = self._blocks[index], delta.get("type")
        if kind == "input_json_delta":
            self._inputs[index] = self._inputs.get(index, "") + delta["partial_json"]
        elif kind == "citations_delta":
            block["citations"] = [*(block.get("citations") or []), delta["citation"]]
        elif kind in _FIELD_OF_DELTA:
            field = _FIELD_OF_DELTA[kind]
            block[field] = block.get(field, "") + delta[field]
        else:
            raise bad_body(f"a delta of an unknown type {str(kind)[:64]!r}")

    def body(self) -> bytes:
        """The whole message."""
        if not self._message:
            raise _NO_CONTENT
        for index, text in self._inputs.items():
            try:
                self._blocks[index]["input"] = orjson.loads(text) if text else {}
            except orjson.JSONDecodeError:
                raise bad_body("a tool input that is no JSON") from None
        content = [self._blocks[index] for index in sorted(self._blocks)]
        return orjson.dumps(self._message | {"content": content})


class GatheredResponse:
    """Events of responses, of which the last repeats the whole."""

    def __init__(self) -> None:
        self._response: dict[str, Any] | None = None
        self.error: TpoError | None = None

    def add(self, event: dict[str, Any]) -> None:
        """Take one event."""
        kind = event.get("type")
        if kind in ("response.completed", "response.incomplete", "response.failed"):
            self._response = event["response"]
            if kind == "response.failed":
                self.error = of_object(event["response"].get("error"))
        elif kind == "error":
            self.error = of_object(event.get("error") or event)

    def body(self) -> bytes:
        """The whole response."""
        if self._response is None:
            raise _NO_CONTENT
        return orjson.dumps(self._response)


GATHERERS: dict[Dialect, Callable[[], Gatherer]] = {
    Dialect.OPENAI_CHAT: lambda: GatheredChoices("chat.completion"),
    Dialect.OPENAI_COMPLETIONS: lambda: GatheredChoices("text_completion"),
    Dialect.ANTHROPIC_MESSAGES: GatheredMessage,
    Dialect.OPENAI_RESPONSES: GatheredResponse,
}
"""The dialects whose streams hold all that a whole reply does."""


def add_event(gatherer: Gatherer, data: bytes) -> None:
    """Give a gatherer one event's data; raises ``BackendFailure`` when it is none."""
    if data == b"[DONE]":
        return
    try:
        event = orjson.loads(data)
        gatherer.add(event)
    except (orjson.JSONDecodeError, AttributeError, KeyError, TypeError, IndexError):
        raise BackendFailure(
            "upstream sent an event that is none", reason="bad_upstream_body"
        ) from None
