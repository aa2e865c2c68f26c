"""What a provider's own models refuse of a request that is well formed: fields that do not agree.

Other servers of the same API take more, so a name that nobody knows is refused nothing of this.

Invariants: an error names the field as its provider does, and its code, which for OpenAI may be
none; a request without any of these fields costs a few comparisons.

Source: error bodies of OpenAI's and Anthropic's APIs as their clients report them; API references.
Known weakness: a field whose name is spelled with escapes is not seen.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

import orjson

from tpo_mp.dialects.body import parse
from tpo_mp.dialects.canonical import (
    Message,
    ModelRequest,
    ToolResultBlock,
    ToolUseBlock,
)
from tpo_mp.errors import InvalidRequest
from tpo_mp.types import Dialect

from . import dress
from .catalog import traits_of

MOST_STOPS: Final = 4
EFFORTS: Final = ("none", "minimal", "low", "medium", "high", "xhigh")
MOST_BEST_OF: Final = 20
_MOST_LOGPROBS: Final = {
    Dialect.OPENAI_CHAT: ("top_logprobs", 20),
    Dialect.OPENAI_COMPLETIONS: ("logprobs", 5),
}
_NO_CODE: Final = ""


def check(request: ModelRequest, dialect: Dialect, body: bytes) -> None:
    """Refuse what the provider of this dialect refuses its own models; raises ``InvalidRequest``.

    ``body`` is the request as it came.
    """
    if traits_of(request.model).kind == "any":
        return
    if dialect in dress.OPENAI_LEGACY:
        _check_openai(request, dialect, body)
    elif dialect is Dialect.ANTHROPIC_MESSAGES:
        _check_anthropic(request)


# -- OpenAI -----------------------------------------------------------------------------------


def _check_openai(request: ModelRequest, dialect: Dialect, body: bytes) -> None:
    if len(request.stop) > MOST_STOPS:
        said = f"stop must have at most {MOST_STOPS} sequences, not {len(request.stop)}"
        raise _openai(said, "stop", "array_above_max_length")
    field, most = _MOST_LOGPROBS[dialect]
    if (request.logprobs or 0) > most:
        said = f"{field} must be at most {most}, not {request.logprobs}"
        raise _openai(said, field, "integer_above_max_value")
    for token, bias in (request.logit_bias or {}).items():
        if not isinstance(bias, int | float) or not -100 <= bias <= 100:
            said = f"logit_bias of {token[:32]!r} must be from -100 to 100"
            raise _openai(said, "logit_bias", "invalid_value")
    for name in ("frequency_penalty", "presence_penalty"):
        _check_penalty(name, getattr(request, name))
    if b'"stream_options"' in body and not request.stream and "stream_options" in _given(body):
        raise _openai("stream_options needs stream to be true", "stream_options", _NO_CODE)
    if dialect is Dialect.OPENAI_COMPLETIONS:
        if b'"best_of"' in body:
            _check_best_of(_given(body).get("best_of"), request)
        return
    if b'"top_logprobs"' in body and request.logprobs is None and "top_logprobs" in _given(body):
        raise _openai("top_logprobs needs logprobs to be true", "top_logprobs", _NO_CODE)
    _check_format(request)
    _check_effort(request)
    _check_choice(request)
    _check_results(request)


def _given(body: bytes) -> dict[str, Any]:
    """The fields of a body that are not null."""
    return {name: value for name, value in parse(body).items() if value is not None}


def _check_penalty(name: str, given: float | None) -> None:
    if given is not None and not -2 <= given <= 2:
        code = "decimal_above_max_value" if given > 2 else "decimal_below_min_value"
        raise _openai(f"{name} must be from -2 to 2, not {given}", name, code)


def _check_best_of(best_of: Any, request: ModelRequest) -> None:
    n = request.n or 1
    if not isinstance(best_of, int):
        return
    if best_of > MOST_BEST_OF:
        said = f"best_of must be at most {MOST_BEST_OF}, not {best_of}"
        raise _openai(said, "best_of", "integer_above_max_value")
    if best_of < n:
        raise _openai(f"best_of ({best_of}) must be at least n ({n})", "best_of", _NO_CODE)
    if request.stream and best_of > n:
        raise _openai("the best of several answers cannot be streamed", "best_of", _NO_CODE)


def _check_format(request: ModelRequest) -> None:
    form = request.response_format
    if form is not None and form.schema is not None and not form.name:
        param = "response_format.json_schema.name"
        raise _openai(f"{param} is missing", param, "missing_required_parameter")


def _check_effort(request: ModelRequest) -> None:
    effort = request.reasoning.effort if request.reasoning else None
    if effort is not None and effort not in EFFORTS:
        said = f"reasoning_effort {effort[:32]!r} is none of {', '.join(EFFORTS)}"
        raise _openai(said, "reasoning_effort", "invalid_value")


def _check_choice(request: ModelRequest) -> None:
    choice = request.tool_choice
    if not request.tools:
        if request.parallel_tool_calls is not None:
            said = "parallel_tool_calls needs tools"
            raise _openai(said, "parallel_tool_calls", _NO_CODE)
        if choice is not None and choice.mode != "none":
            raise _openai("tool_choice needs tools", "tool_choice", _NO_CODE)
    elif choice is not None and choice.mode == "named" and not _has_tool(request, choice.name):
        said = f"tool_choice names {choice.name[:64]!r}, which is none of the tools"
        raise _openai(said, "tool_choice", _NO_CODE)


def _check_results(request: ModelRequest) -> None:
    """Tool results answer calls of the assistant's message before them."""
    for before, message in _turns(request):
        if not any(isinstance(block, ToolResultBlock) for block in message.blocks):
            continue
        if not any(isinstance(block, ToolUseBlock) for block in before):
            where = message.path.replace("messages[", "messages.[")
            said = "a message of role 'tool' must follow one with tool_calls"
            raise _openai(said, f"{where}.role", _NO_CODE)


def _openai(said: str, param: str, code: str) -> InvalidRequest:
    """A refusal of OpenAI's; ``code`` may be none."""
    if code:
        return InvalidRequest(said, reason=code, param=param)
    told = {"message": said, "type": "invalid_request_error", "param": param, "code": None}
    return InvalidRequest(said, param=param, body=orjson.dumps({"error": told}))


# -- Anthropic --------------------------------------------------------------------------------


def _check_anthropic(request: ModelRequest) -> None:
    if request.reasoning is not None and request.reasoning.mode == "enabled":
        if request.temperature not in (None, 1):
            said = "temperature may only be 1 when thinking is enabled"
            raise InvalidRequest(said, param="temperature")
        if request.top_k is not None:
            raise InvalidRequest("top_k must be left out when thinking is enabled", param="top_k")
    if "thread" in request.extra:
        return  # what goes on with an earlier message need not repeat its calls
    for before, message in _turns(request):
        calls = {block.id for block in before if isinstance(block, ToolUseBlock)}
        for number, block in enumerate(message.blocks):
            if isinstance(block, ToolResultBlock) and block.tool_use_id not in calls:
                param = f"{message.path}.content[{number}].tool_use_id"
                said = f"{param}: the message before has no tool_use of this id"
                raise InvalidRequest(said, param=param)


# -- both -------------------------------------------------------------------------------------


def _has_tool(request: ModelRequest, name: str) -> bool:
    return any(tool.name == name or (tool.raw or {}).get("name") == name for tool in request.tools)


def _turns(request: ModelRequest) -> Iterator[tuple[tuple[Any, ...], Message]]:
    """Each message with the blocks of the one before it."""
    before: tuple[Any, ...] = ()
    for message in request.messages:
        yield before, message
        before = message.blocks
