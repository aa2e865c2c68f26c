"""OpenAI responses: whole requests to and from the canonical model.

Source: OpenAI API reference, responses.  Input and output are lists of items: messages, function
calls and their outputs, reasoning.  A reasoning item's ``encrypted_content`` is the model's
signature and passes to the character.

Known weakness: ``previous_response_id`` and ``conversation`` name state; whoever keeps that state
must put the items into ``input`` before translating.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import orjson

from tpo_mp.errors import InvalidRequest

from .body import Fields, parse, wrong
from .canonical import (
    Block,
    ImageBlock,
    Message,
    ModelRequest,
    OpaqueBlock,
    Reasoning,
    RedactedBlock,
    RefusalBlock,
    ResponseFormat,
    TextBlock,
    ThinkingBlock,
    Tool,
    ToolChoice,
    ToolResultBlock,
    ToolUseBlock,
    Trait,
    image_of_url,
    require,
    short_user,
    url_of_image,
)
from .openai_chat_body import effort_of

NAME = "openai_responses"
ID = "resp_"
REDACTED_ID = "rs_redacted_"

CARRIES = frozenset(
    (Trait.SYSTEM, Trait.TURNS, Trait.IMAGES, Trait.TOOLS, Trait.TOOL_IMAGES, Trait.TOOL_ERRORS,
     Trait.THINKING, Trait.JSON_OBJECT, Trait.JSON_SCHEMA, Trait.REASONING, Trait.VERBOSITY,
     Trait.LOGPROBS, Trait.HOT)
)  # fmt: skip
APPROXIMATES = {
    Trait.TOOL_ERRORS: "the result's words tell; the mark is dropped",
    Trait.THINKING: "only signed thoughts are sent, as encrypted reasoning",
    Trait.REASONING: "a token budget becomes an effort",
}
NAMES = {
    Trait.SYSTEM: "instructions", Trait.TURNS: "input", Trait.IMAGES: "input",
    Trait.TOOLS: "tools", Trait.TOOL_IMAGES: "input", Trait.THINKING: "input",
    Trait.JSON_OBJECT: "text.format", Trait.JSON_SCHEMA: "text.format",
    Trait.REASONING: "reasoning", Trait.VERBOSITY: "text.verbosity",
    Trait.LOGPROBS: "top_logprobs", Trait.HOT: "temperature",
}  # fmt: skip
_HINTS = (
    "store", "include", "service_tier", "prompt_cache_retention", "prompt_cache_options",
    "safety_identifier", "stream_options", "context_management",
)  # fmt: skip
_NEUTRAL = {"background": False, "truncation": "disabled"}
_LOGPROBS = "message.output_text.logprobs"


def input_items(body: bytes) -> list[dict[str, Any]]:
    """The request's input as a list of items; a plain string is a user's message."""
    value = Fields(parse(body)).take("input")
    if value is None or isinstance(value, str):
        content = [{"type": "input_text", "text": value or ""}]
        return [{"type": "message", "role": "user", "content": content}] if value else []
    if not isinstance(value, list):
        raise wrong("input", "a string or an array")
    for i, item in enumerate(value):
        if not isinstance(item, dict):
            raise wrong(f"input[{i}]", "an object")
    return value


# -- requests: from the client --------------------------------------------------------------------


def request_to_canonical(body: bytes) -> ModelRequest:
    """Read a whole request; raises ``InvalidRequest`` naming the field."""
    fields = Fields(parse(body))
    instructions = fields.text("instructions")
    system, messages = _input(fields.take("input"))
    if instructions:
        system.insert(0, TextBlock(instructions))
    text = fields.inner("text")
    form = _format(text.table("format"))
    top = fields.whole("top_logprobs")
    include = fields.items("include")
    hints = {name: value for name in _HINTS if (value := fields.take(name)) is not None}
    if include:
        hints["include"] = include
    for name, neutral in _NEUTRAL.items():
        value = fields.take(name)
        if value is not None and value != neutral:
            hints[name] = value
    unstated = {name: hints.pop(name) for name in _NEUTRAL if name in hints}
    known: dict[str, Any] = {
        "model": fields.need_text("model"),
        "tools": tuple(_tool(t, f"tools[{i}]") for i, t in enumerate(fields.items("tools"))),
        "tool_choice": _tool_choice(fields.take("tool_choice")),
        "parallel_tool_calls": fields.flag("parallel_tool_calls"),
        "max_tokens": fields.whole("max_output_tokens"),
        "temperature": fields.number("temperature"),
        "top_p": fields.number("top_p"),
        "verbosity": text.text("verbosity"),
        "user": fields.text("user"),
        "metadata": fields.table("metadata"),
        "cache_key": fields.text("prompt_cache_key"),
        "stream": bool(fields.flag("stream")),
        "reasoning": _reasoning(fields.table("reasoning")),
    }
    extra = fields.rest() | unstated
    if left := text.rest():
        extra["text"] = left
    return ModelRequest(
        source=NAME,
        names=NAMES,
        system=tuple(system),
        messages=tuple(messages),
        logprobs=(top or 0) if top or _LOGPROBS in include else None,
        response_format=form,
        usage_wanted=True,
        hints=hints,
        extra=extra,
        **known,
    )


def _input(value: object) -> tuple[list[TextBlock], list[Message]]:
    """Items as turns: what the model said in a row is one turn, and so are tool outputs."""
    if isinstance(value, str):
        return [], [Message("user", (TextBlock(value),), "input")]
    if not isinstance(value, list):
        raise wrong("input", "a string or an array")
    system: list[TextBlock] = []
    messages: list[Message] = []
    for i, item in enumerate(value):
        path = f"input[{i}]"
        message = _item(Fields(item, path), item, path)
        words = [block for block in message.blocks if isinstance(block, TextBlock)]
        last = messages[-1] if messages else None
        if message.role == "system" and last is None and len(words) == len(message.blocks):
            system += words
        elif last is not None and _continues(last, message):
            messages[-1] = Message(last.role, last.blocks + message.blocks, last.path, last.extra)
        else:
            messages.append(message)
    return system, messages


def _continues(last: Message, message: Message) -> bool:
    if message.role == "assistant":
        return last.role == "assistant"
    return bool(last.blocks and message.blocks) and all(
        isinstance(turn.blocks[-1], ToolResultBlock) for turn in (last, message)
    )


def _item(fields: Fields, item: dict[str, Any], path: str) -> Message:
    kind = fields.text("type") or "message"
    if kind == "message":
        role = fields.need_text("role")
        blocks = tuple(content_in(fields.take("content"), f"{path}.content"))
        extra = fields.rest() or None
        if role == "assistant":
            return Message("assistant", blocks, path, extra)
        if role in ("system", "developer"):
            return Message("system", blocks, path, extra)
        if role == "user":
            return Message("user", blocks, path, extra)
        raise wrong(f"{path}.role", "user, assistant, system or developer")
    if kind == "function_call_output":
        output = content_in(fields.take("output"), f"{path}.output")
        call_id = fields.need_text("call_id")
        result = ToolResultBlock(call_id, tuple(output), extra=fields.rest() or None)
        return Message("user", (result,), path)
    return Message("assistant", (said_item(fields, item, kind),), path)


def said_item(fields: Fields, item: dict[str, Any], kind: str) -> Block:
    """One item the model made, other than a message."""
    if kind == "function_call":
        call_id, name = fields.need_text("call_id"), fields.need_text("name")
        return ToolUseBlock(call_id, name, fields.text("arguments") or "", fields.rest() or None)
    if kind == "reasoning":
        return _thoughts(fields)
    return OpaqueBlock(kind, item)


def _thoughts(fields: Fields) -> Block:
    path = fields.at("summary")
    parts = [Fields(part, path) for part in fields.items("summary")]
    parts = [Fields(part, fields.at("content")) for part in fields.items("content")] or parts
    text = "\n\n".join(part.text("text") or "" for part in parts)
    signature = fields.text("encrypted_content") or ""
    if str(fields.take("id")).startswith(REDACTED_ID):
        return RedactedBlock(signature)
    return ThinkingBlock(text, signature, fields.rest() or None)


def content_in(content: object, path: str) -> Iterable[Block]:
    """Read the content of a message, or a tool's output."""
    if content is None or content == "":
        return []
    if isinstance(content, str):
        return [TextBlock(content)]
    if not isinstance(content, list):
        raise wrong(path, "a string or an array")
    return [_part(part, f"{path}[{j}]") for j, part in enumerate(content)]


def _part(part: object, path: str) -> Block:
    fields = Fields(part, path)
    assert isinstance(part, dict)
    kind = fields.need_text("type")
    if kind in ("input_text", "output_text", "text"):
        return TextBlock(fields.need_text("text"), fields.rest() or None)
    if kind == "refusal":
        return RefusalBlock(fields.need_text("refusal"), fields.rest() or None)
    if kind == "input_image" and part.get("image_url") is not None:
        url, detail = fields.need_text("image_url"), fields.text("detail")
        return image_of_url(url, detail, fields.rest() or None)
    return OpaqueBlock(kind, part)


def _tool(item: object, path: str) -> Tool:
    fields = Fields(item, path)
    assert isinstance(item, dict)
    if fields.need_text("type") != "function":
        return Tool(raw=item)
    name, said = fields.need_text("name"), fields.text("description")
    schema, strict = fields.table("parameters"), fields.flag("strict")
    return Tool(name, said, schema, strict, None, fields.rest() or None)


def _tool_choice(value: object) -> ToolChoice | None:
    if value is None:
        return None
    if value == "auto":
        return ToolChoice("auto")
    if value == "none":
        return ToolChoice("none")
    if value == "required":
        return ToolChoice("required")
    fields = Fields(value, "tool_choice")
    assert isinstance(value, dict)
    if fields.text("type") == "function":
        return ToolChoice("named", fields.need_text("name"))
    return ToolChoice("raw", raw=value)


def _format(value: dict[str, Any] | None) -> ResponseFormat | None:
    if value is None:
        return None
    form = Fields(value, "text.format")
    kind = form.need_text("type")
    if kind == "json_object":
        return ResponseFormat()
    if kind == "json_schema":
        schema, name = form.table("schema"), form.text("name")
        return ResponseFormat(schema or {}, name, form.text("description"), form.flag("strict"))
    if kind == "text":
        return None
    raise wrong("text.format.type", "text, json_object or json_schema")


def _reasoning(value: dict[str, Any] | None) -> Reasoning | None:
    if value is None:
        return None
    fields = Fields(value, "reasoning")
    effort, extra = fields.text("effort"), fields.rest()
    return Reasoning(effort=effort, extra=extra or None) if effort or extra else None


# -- requests: to the upstream --------------------------------------------------------------------


def request_from_canonical(request: ModelRequest) -> bytes:
    """Write a whole request; raises ``InvalidRequest`` for what responses cannot say."""
    require(request, NAME, CARRIES)
    own = request.source == NAME
    out: dict[str, Any] = {"model": request.model}
    if request.system:
        out["instructions"] = "\n\n".join(block.text for block in request.system)
    out["input"] = [item for message in request.messages for item in _items_out(message, own)]
    if own:
        out |= request.hints | request.extra
    else:
        # The gateway's client keeps the conversation; nothing is to stay with the provider.
        out["store"] = False
        if any(isinstance(b, ThinkingBlock) for m in request.messages for b in m.blocks) or (
            request.reasoning is not None
        ):
            out["include"] = ["reasoning.encrypted_content"]
    if request.logprobs is not None and _LOGPROBS not in out.get("include", ()):
        out["include"] = [*out.get("include", ()), _LOGPROBS]
    options = {
        "max_output_tokens": request.max_tokens,
        "temperature": request.temperature,
        "top_p": request.top_p,
        "top_logprobs": request.logprobs or None,
        "tools": [tool_out(tool, own) for tool in request.tools] or None,
        "tool_choice": choice_out(request.tool_choice) if request.tools or own else None,
        "parallel_tool_calls": request.parallel_tool_calls,
        "text": _text_out(request, out.get("text")),
        "reasoning": _reasoning_out(request.reasoning, own),
        "user": short_user(request.user),
        "metadata": request.metadata if own else None,
        "prompt_cache_key": request.cache_key,
        "stream": request.stream or None,
    }
    return orjson.dumps(out | {name: v for name, v in options.items() if v is not None})


def _text_out(request: ModelRequest, left: dict[str, Any] | None) -> dict[str, Any] | None:
    out = dict(left or {})
    form = request.response_format
    if form is not None and form.schema is None:
        out["format"] = {"type": "json_object"}
    elif form is not None:
        shape = {"type": "json_schema", "name": form.name or "answer", "schema": form.schema}
        options = {"description": form.description, "strict": form.strict}
        out["format"] = shape | {name: v for name, v in options.items() if v is not None}
    if request.verbosity is not None:
        out["verbosity"] = request.verbosity
    return out or None


def _reasoning_out(reasoning: Reasoning | None, own: bool) -> dict[str, Any] | None:
    if reasoning is None:
        return None
    effort = effort_of(reasoning)
    out: dict[str, Any] = {"effort": effort} if effort else {}
    if own:
        return out | (reasoning.extra or {})
    if reasoning.mode != "disabled":
        out["summary"] = "auto"
    return out or None


def _items_out(message: Message, own: bool) -> list[dict[str, Any]]:
    """A turn as items; neighbouring words share one message."""
    out: list[dict[str, Any]] = []
    parts: list[dict[str, Any]] = []
    assistant = message.role == "assistant"
    extra = (message.extra or {}) if own else {}

    def flush() -> None:
        if parts:
            out.append({"type": "message", "role": message.role, "content": parts.copy()} | extra)
            parts.clear()

    for j, block in enumerate(message.blocks):
        if isinstance(block, TextBlock | ImageBlock | RefusalBlock):
            parts.append(_part_out(block, own, assistant))
        elif isinstance(block, OpaqueBlock) and not assistant:
            parts.append(block.raw)
        elif own or _is_sendable(block):
            flush()
            out.append(_said_out(block, own, f"{message.path}_{j}"))
    flush()
    return out


def _is_sendable(block: Block) -> bool:
    """Unsigned thoughts are not sent, and redacted ones are another provider's."""
    if isinstance(block, ThinkingBlock):
        return bool(block.signature)
    return not isinstance(block, RedactedBlock)


def _said_out(block: Block, own: bool, place: str) -> dict[str, Any]:
    extra = (block.extra or {}) if own else {}
    if isinstance(block, ToolResultBlock):
        output: Any = [_part_out(inner, own, False) for inner in block.content]
        if not output or (len(block.content) == 1 and isinstance(block.content[0], TextBlock)):
            output = "".join(b.text for b in block.content if isinstance(b, TextBlock))
        return {
            "type": "function_call_output",
            "call_id": block.tool_use_id,
            "output": output,
        } | extra
    if isinstance(block, ToolUseBlock):
        return {
            "type": "function_call",
            "call_id": block.id,
            "name": block.name,
            "arguments": block.arguments,
        } | extra
    if isinstance(block, ThinkingBlock):
        place = "".join(c if c.isalnum() else "_" for c in place)
        return {"id": f"rs_{place}"} | reasoning_out(block) | extra
    if isinstance(block, RedactedBlock):
        return redacted_out(block, place) | extra
    if isinstance(block, OpaqueBlock):
        return block.raw
    raise InvalidRequest(
        f"a {type(block).__name__} cannot be an input item",
        reason="unsupported_translation",
        param="messages",
    )


def reasoning_out(block: ThinkingBlock) -> dict[str, Any]:
    """Write thoughts as a reasoning item without its id."""
    summary = [{"type": "summary_text", "text": block.text}] if block.text else []
    out: dict[str, Any] = {"type": "reasoning", "summary": summary}
    if block.signature:
        out["encrypted_content"] = block.signature
    return out


def redacted_out(block: RedactedBlock, place: str) -> dict[str, Any]:
    """Redacted thoughts look like encrypted reasoning; only the id tells them apart."""
    return {
        "id": REDACTED_ID + "".join(c if c.isalnum() else "_" for c in place),
        "type": "reasoning",
        "summary": [],
        "encrypted_content": block.data,
    }


def _part_out(block: Block, own: bool, assistant: bool) -> dict[str, Any]:
    extra = (block.extra or {}) if own else {}
    if isinstance(block, TextBlock):
        kind = "output_text" if assistant else "input_text"
        return {"type": kind, "text": block.text} | extra
    if isinstance(block, ImageBlock):
        detail = block.detail or "auto"
        return {"type": "input_image", "image_url": url_of_image(block), "detail": detail} | extra
    if isinstance(block, RefusalBlock):
        return {"type": "refusal", "refusal": block.text} | extra
    assert isinstance(block, OpaqueBlock)
    return block.raw


def tool_out(tool: Tool, own: bool) -> dict[str, Any]:
    """Write a tool; ``strict`` and ``parameters`` are always there on this wire."""
    if tool.raw is not None:
        return tool.raw
    schema = tool.schema if tool.schema is not None else {"type": "object", "properties": {}}
    out: dict[str, Any] = {
        "type": "function",
        "name": tool.name,
        "parameters": schema,
        "strict": bool(tool.strict),
    }
    if tool.description is not None:
        out["description"] = tool.description
    return out | ((tool.extra or {}) if own else {})


def choice_out(choice: ToolChoice | None) -> Any:
    """Write a tool choice."""
    if choice is None:
        return None
    if choice.mode == "named":
        return {"type": "function", "name": choice.name}
    return choice.raw if choice.mode == "raw" else choice.mode
