"""Anthropic messages: whole requests and replies to and from the canonical model.

Source: Anthropic API reference, messages; thinking signatures go back to the character.

Known weakness: a tool's input is an object on this wire, so arguments that are no JSON object are
refused in a request and a failure in a reply.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, Literal

import orjson

from tpo_mp.errors import BackendFailure, InvalidRequest

from .body import Fields, parse, texts, user_id, wrong
from .canonical import (
    Block,
    ImageBlock,
    Message,
    ModelReply,
    ModelRequest,
    OpaqueBlock,
    Reasoning,
    RedactedBlock,
    RefusalBlock,
    ReplyChoice,
    ResponseFormat,
    StopReason,
    TextBlock,
    ThinkingBlock,
    TokenUsage,
    Tool,
    ToolChoice,
    ToolResultBlock,
    ToolUseBlock,
    Trait,
    own_id,
    require,
    unsupported,
)
from .failure import bad_body

NAME = "anthropic_messages"
ID = "msg_"
DEFAULT_MAX_TOKENS = 4096
"""The dialect requires a limit; this is sent when another dialect's client set none."""

CARRIES = frozenset(
    (Trait.SYSTEM, Trait.TURNS, Trait.IMAGES, Trait.TOOLS, Trait.TOOL_IMAGES, Trait.TOOL_ERRORS,
     Trait.THINKING, Trait.JSON_SCHEMA, Trait.REASONING, Trait.STOP, Trait.TOP_K)
)  # fmt: skip
APPROXIMATES = {
    Trait.THINKING: "only signed thoughts are sent; others cannot be verified there",
    Trait.REASONING: "effort none switches thinking off, minimal becomes low",
    Trait.JSON_SCHEMA: "the schema's name and description are dropped",
}
NAMES = {
    Trait.SYSTEM: "system", Trait.TURNS: "messages", Trait.IMAGES: "messages",
    Trait.TOOLS: "tools", Trait.TOOL_IMAGES: "messages", Trait.TOOL_ERRORS: "messages",
    Trait.THINKING: "messages", Trait.JSON_SCHEMA: "output_config.format",
    Trait.REASONING: "thinking", Trait.STOP: "stop_sequences", Trait.TOP_K: "top_k",
}  # fmt: skip
_HINTS = (
    "cache_control", "context_management", "service_tier", "inference_geo", "diagnostics", "speed",
    "user_profile_id", "workspace_id",
)  # fmt: skip
_EFFORTS = {"minimal": "low", "low": "low", "medium": "medium", "high": "high"}

STOP_OF_REASON: dict[str, StopReason] = {
    "end_turn": "end",
    "max_tokens": "length",
    "stop_sequence": "stop_sequence",
    "tool_use": "tool_use",
    "pause_turn": "pause",
    "refusal": "refusal",
    "model_context_window_exceeded": "context",
}
REASON_OF_STOP: dict[StopReason, str] = {v: k for k, v in STOP_OF_REASON.items()} | {
    "content_filter": "refusal"
}
"""``abort`` has no word here: as with vLLM it is a whole message whose reason is null."""


# -- requests: from the client --------------------------------------------------------------------


def request_to_canonical(body: bytes) -> ModelRequest:
    """Read a whole request; raises ``InvalidRequest`` naming the field."""
    fields = Fields(parse(body))
    output = fields.inner("output_config")
    choice, parallel = _choice(fields)
    metadata = fields.table("metadata")
    hints = {name: value for name in _HINTS if (value := fields.take(name)) is not None}
    form = _format(output.table("format"))
    reasoning = _reasoning(fields.table("thinking"), output.text("effort"))
    system = _blocks(fields.take("system"), "system")
    messages = [_message(m, f"messages[{i}]") for i, m in enumerate(fields.items("messages"))]
    tools = [_tool(tool, f"tools[{i}]") for i, tool in enumerate(fields.items("tools"))]
    known: dict[str, Any] = {
        "model": fields.need_text("model"),
        "max_tokens": fields.whole("max_tokens"),
        "temperature": fields.number("temperature"),
        "top_p": fields.number("top_p"),
        "top_k": fields.whole("top_k"),
        "stop": texts(fields.take("stop_sequences"), "stop_sequences"),
        "stream": bool(fields.flag("stream")),
    }
    extra = fields.rest()
    if left := output.rest():
        extra["output_config"] = left
    return ModelRequest(
        source=NAME,
        names=NAMES,
        system=tuple(block for block in system if isinstance(block, TextBlock)),
        messages=tuple(messages),
        tools=tuple(tools),
        tool_choice=choice,
        parallel_tool_calls=parallel,
        response_format=form,
        reasoning=reasoning,
        user=user_id(metadata),
        metadata=metadata,
        usage_wanted=True,
        hints=hints,
        extra=extra,
        **known,
    )


def _message(item: object, path: str) -> Message:
    fields = Fields(item, path)
    role = fields.need_text("role")
    blocks = _blocks(fields.take("content"), f"{path}.content")
    roles: dict[str, Literal["user", "assistant", "system"]] = {
        "user": "user",
        "assistant": "assistant",
        "system": "system",
    }
    if role not in roles:
        raise wrong(f"{path}.role", "user, assistant or system")
    return Message(roles[role], blocks, path, fields.rest() or None)


def _blocks(content: object, path: str) -> tuple[Block, ...]:
    if content is None or content == "":
        return ()
    if isinstance(content, str):
        return (TextBlock(content),)
    if not isinstance(content, list):
        raise wrong(path, "a string or an array")
    return tuple(block_in(block, f"{path}[{j}]") for j, block in enumerate(content))


def block_in(item: object, path: str) -> Block:
    """Read one content block."""
    fields = Fields(item, path)
    assert isinstance(item, dict)
    kind = fields.need_text("type")
    if kind == "text":
        return TextBlock(fields.need_text("text"), fields.rest() or None)
    if kind == "tool_use":
        arguments = orjson.dumps(fields.table("input") or {}).decode()
        tool_id, name = fields.need_text("id"), fields.need_text("name")
        return ToolUseBlock(tool_id, name, arguments, fields.rest() or None)
    if kind == "tool_result":
        tool_id = fields.need_text("tool_use_id")
        content = _blocks(fields.take("content"), f"{path}.content")
        is_error = bool(fields.flag("is_error"))
        return ToolResultBlock(tool_id, content, is_error, fields.rest() or None)
    if kind == "thinking":
        thoughts, signature = fields.text("thinking") or "", fields.text("signature") or ""
        return ThinkingBlock(thoughts, signature, fields.rest() or None)
    if kind == "redacted_thinking":
        return RedactedBlock(fields.need_text("data"), fields.rest() or None)
    if kind == "image":
        return _image(fields, item)
    return OpaqueBlock(kind, item)


def _image(fields: Fields, item: dict[str, Any]) -> Block:
    source = fields.inner("source")
    kind = source.need_text("type")
    if kind == "base64":
        media_type, data = source.need_text("media_type"), source.need_text("data")
        return ImageBlock(media_type=media_type, data=data, extra=fields.rest() or None)
    if kind == "url":
        return ImageBlock(url=source.need_text("url"), extra=fields.rest() or None)
    return OpaqueBlock(f"image from a {kind}", item)


def _tool(item: object, path: str) -> Tool:
    fields = Fields(item, path)
    if (fields.text("type") or "custom") != "custom":
        assert isinstance(item, dict)
        return Tool(raw=item)
    return Tool(
        fields.need_text("name"),
        fields.text("description"),
        fields.table("input_schema"),
        fields.flag("strict"),
        None,
        fields.rest() or None,
    )


def _choice(fields: Fields) -> tuple[ToolChoice | None, bool | None]:
    value = fields.table("tool_choice")
    if value is None:
        return None, None
    choice = Fields(value, "tool_choice")
    kind = choice.need_text("type")
    single = choice.flag("disable_parallel_tool_use")
    parallel = None if single is None else not single
    if kind == "auto":
        return ToolChoice("auto"), parallel
    if kind == "any":
        return ToolChoice("required"), parallel
    if kind == "none":
        return ToolChoice("none"), parallel
    if kind == "tool":
        return ToolChoice("named", choice.need_text("name")), parallel
    raise wrong("tool_choice.type", "auto, any, tool or none")


def _format(value: dict[str, Any] | None) -> ResponseFormat | None:
    if value is None:
        return None
    form = Fields(value, "output_config.format")
    if form.need_text("type") != "json_schema":
        raise wrong("output_config.format.type", "json_schema")
    return ResponseFormat(form.table("schema") or {})


def _reasoning(thinking: dict[str, Any] | None, effort: str | None) -> Reasoning | None:
    if thinking is None:
        return Reasoning(effort=effort) if effort else None
    fields = Fields(thinking, "thinking")
    kind = fields.need_text("type")
    budget = fields.whole("budget_tokens")
    extra = fields.rest() or None
    if kind == "enabled":
        return Reasoning(effort, budget, "enabled", extra)
    if kind == "adaptive":
        return Reasoning(effort, None, "adaptive", extra)
    if kind == "disabled":
        return Reasoning(effort, None, "disabled", extra)
    return Reasoning(effort, None, None, {"type": kind} | (extra or {}))


# -- requests: to the upstream --------------------------------------------------------------------


def request_from_canonical(request: ModelRequest) -> bytes:
    """Write a whole request; raises ``InvalidRequest`` for what messages cannot say."""
    require(request, NAME, CARRIES)
    own = request.source == NAME
    limit = request.max_tokens
    out: dict[str, Any] = {
        "model": request.model,
        "max_tokens": DEFAULT_MAX_TOKENS if limit is None else limit,
        "messages": _messages_out(request, own),
    }
    if own:
        out |= request.hints | request.extra
    output = dict(out.get("output_config", {}))
    if request.response_format and request.response_format.schema is not None:
        output["format"] = {"type": "json_schema", "schema": request.response_format.schema}
    thinking = _thinking_out(request.reasoning, output, own)
    user = {"user_id": request.user} if request.user else None
    options = {
        "system": _system_out(request.system, own),
        "temperature": request.temperature,
        "top_p": request.top_p,
        "top_k": request.top_k,
        "stop_sequences": list(request.stop) or None,
        "tools": [_tool_out(tool, own) for tool in request.tools] or None,
        "tool_choice": _choice_out(request),
        "thinking": thinking,
        "output_config": output or None,
        "metadata": request.metadata if own else user,
        "stream": request.stream or None,
    }
    return orjson.dumps(out | {name: v for name, v in options.items() if v is not None})


def _thinking_out(
    reasoning: Reasoning | None, output: dict[str, Any], own: bool
) -> dict[str, Any] | None:
    if reasoning is None:
        return None
    effort, extra = reasoning.effort, (reasoning.extra or {}) if own else {}
    if effort is not None and effort != "none":
        output["effort"] = effort if own else _EFFORTS.get(effort, effort)
    if reasoning.budget is not None:
        return {"type": "enabled", "budget_tokens": reasoning.budget} | extra
    if reasoning.mode == "disabled" or effort == "none":
        return {"type": "disabled"} | extra
    if reasoning.mode == "adaptive" or (effort and not own):
        return {"type": "adaptive"} | extra
    return extra or None


def _system_out(system: tuple[TextBlock, ...], own: bool) -> Any:
    if not system:
        return None
    if len(system) == 1 and not (own and system[0].extra):
        return system[0].text
    return [_block_out(block, own, "system") for block in system if block.text]


def _messages_out(request: ModelRequest, own: bool) -> list[dict[str, Any]]:
    out: list[dict[str, Any]] = []
    for message in request.messages:
        blocks = message.blocks
        if not own:
            blocks = tuple(block for block in blocks if _is_sendable(block))
        extra = (message.extra or {}) if own else {}
        out.append({"role": message.role, "content": _content_out(blocks, own, message)} | extra)
    return out


def _is_sendable(block: Block) -> bool:
    """Empty texts and unsigned thoughts are errors on this wire."""
    if isinstance(block, TextBlock):
        return bool(block.text)
    return not isinstance(block, ThinkingBlock) or bool(block.signature)


def _content_out(blocks: Sequence[Block], own: bool, message: Message) -> Any:
    if len(blocks) == 1 and isinstance(blocks[0], TextBlock) and not (own and blocks[0].extra):
        return blocks[0].text
    return [
        _block_out(block, own, f"{message.path}.content[{j}]") for j, block in enumerate(blocks)
    ]


def _block_out(block: Block, own: bool, path: str) -> dict[str, Any]:
    extra = (block.extra or {}) if own else {}
    if isinstance(block, ToolResultBlock):
        tool_id = block.tool_use_id if own else _tool_id(block.tool_use_id)
        out: dict[str, Any] = {"type": "tool_result", "tool_use_id": tool_id}
        if block.content:
            out["content"] = _content_out(block.content, own, Message("user", (), path))
        if block.is_error:
            out["is_error"] = True
        return out | extra
    if isinstance(block, ImageBlock):
        return {"type": "image", "source": _source_out(block, path)} | extra
    if isinstance(block, ToolUseBlock) and not _is_object(block.arguments):
        raise unsupported(f"{path}.arguments", NAME, "tool arguments must be a JSON object")
    if isinstance(block, ToolUseBlock) and not own:
        return block_out(block) | {"id": _tool_id(block.id)}
    return block_out(block) | extra


def _tool_id(given: str) -> str:
    """An id as this wire takes it; some engines' ids have dots and colons."""
    return re.sub(r"[^a-zA-Z0-9_-]", "_", given) or "tool"


def _is_object(arguments: str) -> bool:
    try:
        return not arguments.strip() or isinstance(orjson.loads(arguments), dict)
    except orjson.JSONDecodeError:
        return False


def _source_out(image: ImageBlock, path: str) -> dict[str, Any]:
    if image.data:
        return {"type": "base64", "media_type": image.media_type, "data": image.data}
    if image.url.startswith("data:"):
        raise unsupported(path, NAME, "a data URL must be base64 with a media type")
    return {"type": "url", "url": image.url}


def _tool_out(tool: Tool, own: bool) -> dict[str, Any]:
    if tool.raw is not None:
        return tool.raw
    schema = tool.schema if tool.schema is not None else {"type": "object", "properties": {}}
    out: dict[str, Any] = {"name": tool.name, "input_schema": schema}
    if tool.description is not None:
        out["description"] = tool.description
    if tool.strict is not None:
        out["strict"] = tool.strict
    return out | ((tool.extra or {}) if own else {})


def _choice_out(request: ModelRequest) -> dict[str, Any] | None:
    choice, parallel = request.tool_choice, request.parallel_tool_calls
    if not request.tools:
        return None
    if choice is None:
        if parallel is not False:
            return None
        choice = ToolChoice("auto")
    out: dict[str, Any] = {"type": "any" if choice.mode == "required" else choice.mode}
    if choice.mode == "named":
        out = {"type": "tool", "name": choice.name}
    if parallel is not None and choice.mode != "none":
        out["disable_parallel_tool_use"] = not parallel
    return out


# -- replies ----------------------------------------------------------------------------------


def reply_to_canonical(body: bytes) -> ModelReply:
    """Read an upstream's whole reply; raises ``BackendFailure`` when it is not one."""
    try:
        fields = Fields(parse(body))
        if fields.text("type") != "message":
            raise wrong("type", "message")
        blocks = _blocks(fields.items("content"), "content")
        usage = fields.table("usage")
        reason = fields.text("stop_reason")
        fields.take("role")
        stop = STOP_OF_REASON.get(reason, "end") if reason else "abort"
        return ModelReply(
            id=fields.text("id") or "",
            model=fields.text("model") or "",
            choices=(ReplyChoice(blocks, stop, fields.text("stop_sequence")),),
            usage=usage_in(Fields(usage, "usage")) if usage is not None else None,
            source=NAME,
            extra=fields.rest(),
        )
    except InvalidRequest as e:
        raise bad_body(f"no message: {e.message}") from None


def usage_in(fields: Fields, before: TokenUsage | None = None) -> TokenUsage:
    """Read ``usage``; what it does not say is taken from ``before`` (a stream's start)."""
    before = before or TokenUsage()
    cached = fields.whole("cache_read_input_tokens")
    written = fields.whole("cache_creation_input_tokens")
    fresh = fields.whole("input_tokens")
    output = fields.whole("output_tokens")
    thinking = fields.inner("output_tokens_details").whole("thinking_tokens")
    cached = before.cached if cached is None else cached
    written = before.cache_write if written is None else written
    fresh = before.prompt - before.cached - before.cache_write if fresh is None else fresh
    return TokenUsage(
        fresh + cached + written,
        before.completion if output is None else output,
        cached,
        written,
        before.reasoning if thinking is None else thinking,
    )


def usage_out(usage: TokenUsage) -> dict[str, Any]:
    """Write ``usage``; input tokens are the ones no cache had."""
    out: dict[str, Any] = {
        "input_tokens": max(usage.prompt - usage.cached - usage.cache_write, 0),
        "output_tokens": usage.completion,
        "cache_creation_input_tokens": usage.cache_write,
        "cache_read_input_tokens": usage.cached,
    }
    if usage.reasoning:
        out["output_tokens_details"] = {"thinking_tokens": usage.reasoning}
    return out


def reply_from_canonical(
    reply: ModelReply,
    request: ModelRequest | None = None,  # noqa: ARG001 - every codec's signature
) -> bytes:
    """Write a whole reply; only its first choice fits."""
    choice = reply.choices[0] if reply.choices else ReplyChoice(())
    own = reply.source == NAME
    content = [block_out(b) | ((b.extra or {}) if own else {}) for b in choice.blocks if _shown(b)]
    out: dict[str, Any] = {
        "id": own_id(reply.id, ID),
        "type": "message",
        "role": "assistant",
        "model": reply.model,
        "content": content,
        "stop_reason": reason_of(choice.stop, choice.blocks),
        "stop_sequence": choice.stop_sequence,
        "usage": usage_out(reply.usage or TokenUsage()),
    }
    return orjson.dumps(out | (reply.extra if own else {}))


def _shown(block: Block) -> bool:
    return not isinstance(block, TextBlock) or bool(block.text)


def reason_of(stop: StopReason | None, blocks: Sequence[Block]) -> str | None:
    """The stop reason; OpenAI's models refuse with words and a plain stop."""
    if stop == "end" and any(isinstance(block, RefusalBlock) for block in blocks):
        return "refusal"
    return None if stop is None else REASON_OF_STOP.get(stop)


def block_out(block: Block) -> dict[str, Any]:
    """Write one block of a reply."""
    if isinstance(block, TextBlock | RefusalBlock):
        return {"type": "text", "text": block.text}
    if isinstance(block, ToolUseBlock):
        return {
            "type": "tool_use",
            "id": block.id,
            "name": block.name,
            "input": _input_of(block.arguments),
        }
    if isinstance(block, ThinkingBlock):
        return {"type": "thinking", "thinking": block.text, "signature": block.signature}
    if isinstance(block, RedactedBlock):
        return {"type": "redacted_thinking", "data": block.data}
    if isinstance(block, OpaqueBlock):
        return block.raw
    raise bad_body(f"a {type(block).__name__} in a reply")


def _input_of(arguments: str) -> dict[str, Any]:
    try:
        found = orjson.loads(arguments) if arguments.strip() else {}
    except orjson.JSONDecodeError:
        found = None
    if not isinstance(found, dict):
        said = "the model's tool arguments are no JSON object"
        raise BackendFailure(said, reason="bad_tool_arguments")
    return found
