"""OpenAI chat completions: whole requests and replies to and from the canonical model.

Source: OpenAI API reference; ``reasoning_content`` as DeepSeek, vLLM and llama.cpp send it, and
``thinking_blocks`` as LiteLLM's clients echo signed thoughts.

Known weakness: a chat message has one text and one list of tool calls, so blocks that alternate
come out as thoughts, text, calls.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import orjson

from tpo_mp.errors import InvalidRequest

from .body import Fields, parse, texts, wrong
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
    TextBlock,
    ThinkingBlock,
    Tool,
    ToolChoice,
    ToolResultBlock,
    ToolUseBlock,
    Trait,
    image_of_url,
    own_id,
    require,
    short_user,
    url_of_image,
)
from .failure import bad_body
from .openai_chat_plain import plain_request
from .openai_wire import FINISH_OF_STOP, STOP_OF_FINISH, usage_in, usage_out

NAME = "openai_chat"
ID = "chatcmpl-"

CARRIES = frozenset(Trait) - {Trait.TOOL_IMAGES}
APPROXIMATES = {
    Trait.TOOL_ERRORS: "the result's words tell; the mark is dropped",
    Trait.THINKING: "left out: other models may not read it",
    Trait.REASONING: "a token budget becomes an effort",
    Trait.TOP_K: "sent as `top_k`, which OpenAI-compatible engines read and OpenAI refuses",
}
NAMES = {
    Trait.SYSTEM: "messages", Trait.TURNS: "messages", Trait.IMAGES: "messages",
    Trait.TOOLS: "tools", Trait.THINKING: "messages", Trait.JSON_OBJECT: "response_format",
    Trait.JSON_SCHEMA: "response_format", Trait.REASONING: "reasoning_effort",
    Trait.VERBOSITY: "verbosity", Trait.CHOICES: "n", Trait.SEED: "seed", Trait.STOP: "stop",
    Trait.TOP_K: "top_k", Trait.FREQUENCY_PENALTY: "frequency_penalty",
    Trait.PRESENCE_PENALTY: "presence_penalty", Trait.LOGIT_BIAS: "logit_bias",
    Trait.LOGPROBS: "logprobs", Trait.HOT: "temperature",
}  # fmt: skip
_HINTS = (
    "service_tier", "store", "prompt_cache_retention", "prompt_cache_options", "safety_identifier",
)  # fmt: skip
_BUDGETS = ((2048, "low"), (8192, "medium"))


# -- requests: from the client --------------------------------------------------------------------


def request_to_canonical(body: bytes) -> ModelRequest:
    """Read a whole request; raises ``InvalidRequest`` naming the field."""
    return plain_request(body, NAME, NAMES) or any_request(body)


def any_request(body: bytes) -> ModelRequest:
    """Read a request field by field."""
    fields = Fields(parse(body))
    system, messages = _messages(fields.items("messages"))
    options = fields.table("stream_options")
    max_tokens = fields.whole("max_completion_tokens")
    older = fields.whole("max_tokens")
    wants = fields.flag("logprobs")
    top = fields.whole("top_logprobs")
    effort = fields.text("reasoning_effort")
    known: dict[str, Any] = {
        "model": fields.need_text("model"),
        "tools": tuple(_tool(t, f"tools[{i}]") for i, t in enumerate(fields.items("tools"))),
        "tool_choice": _tool_choice(fields.take("tool_choice")),
        "parallel_tool_calls": fields.flag("parallel_tool_calls"),
        "temperature": fields.number("temperature"),
        "top_p": fields.number("top_p"),
        "top_k": fields.whole("top_k"),
        "stop": texts(fields.take("stop"), "stop"),
        "n": fields.whole("n"),
        "seed": fields.whole("seed"),
        "frequency_penalty": fields.number("frequency_penalty"),
        "presence_penalty": fields.number("presence_penalty"),
        "logit_bias": fields.table("logit_bias"),
        "response_format": _format(fields),
        "verbosity": fields.text("verbosity"),
        "user": fields.text("user"),
        "metadata": fields.table("metadata"),
        "cache_key": fields.text("prompt_cache_key"),
        "stream": bool(fields.flag("stream")),
    }
    hints = {name: value for name in _HINTS if (value := fields.take(name)) is not None}
    if options:
        hints["stream_options"] = options
    if max_tokens is not None:
        hints["max_completion_tokens"] = max_tokens
    return ModelRequest(
        source=NAME,
        names=NAMES,
        system=system,
        messages=messages,
        max_tokens=max_tokens if max_tokens is not None else older,
        logprobs=(top or 0) if wants else None,
        reasoning=Reasoning(effort=effort) if effort else None,
        usage_wanted=bool(options and options.get("include_usage")),
        hints=hints,
        extra=fields.rest(),
        **known,
    )


def _messages(items: list[Any]) -> tuple[tuple[TextBlock, ...], tuple[Message, ...]]:
    """Split off the leading system messages, and join neighbouring tool results in one turn."""
    system: list[TextBlock] = []
    messages: list[Message] = []
    for i, item in enumerate(items):
        path = f"messages[{i}]"
        fields = Fields(item, path)
        role = fields.need_text("role")
        if role in ("system", "developer"):
            blocks = _content(fields, path)
            if not messages and all(isinstance(block, TextBlock) for block in blocks):
                system += [block for block in blocks if isinstance(block, TextBlock)]
            else:
                messages.append(Message("system", tuple(blocks), path, fields.rest() or None))
        elif role == "user":
            user = tuple(_content(fields, path))
            messages.append(Message("user", user, path, fields.rest() or None))
        elif role == "assistant":
            said = tuple(_said(fields, path))
            messages.append(Message("assistant", said, path, fields.rest() or None))
        elif role == "tool":
            result = _tool_result(fields, path)
            last = messages[-1] if messages else None
            if last and last.blocks and isinstance(last.blocks[-1], ToolResultBlock):
                messages[-1] = Message("user", (*last.blocks, result), last.path, last.extra)
            else:
                messages.append(Message("user", (result,), path))
        else:
            raise wrong(f"{path}.role", "system, developer, user, assistant or tool")
    return tuple(system), tuple(messages)


def _content(fields: Fields, path: str) -> list[Block]:
    content = fields.take("content")
    if content is None or content == "":
        return []
    if isinstance(content, str):
        return [TextBlock(content)]
    if not isinstance(content, list):
        raise wrong(f"{path}.content", "a string or an array")
    return [_part(part, f"{path}.content[{j}]") for j, part in enumerate(content)]


def _part(part: object, path: str) -> Block:
    fields = Fields(part, path)
    kind = fields.need_text("type")
    if kind == "text":
        return TextBlock(fields.need_text("text"), fields.rest() or None)
    if kind == "refusal":
        return RefusalBlock(fields.need_text("refusal"), fields.rest() or None)
    if kind == "image_url":
        image = fields.inner("image_url")
        url, detail = image.need_text("url"), image.text("detail")
        return image_of_url(url, detail, fields.rest() or None)
    assert isinstance(part, dict)
    return OpaqueBlock(kind, part)


def _said(fields: Fields, path: str) -> list[Block]:
    """An assistant's message: thoughts, words, tool calls."""
    blocks: list[Block] = []
    thoughts = fields.text("reasoning_content") or fields.text("reasoning")
    signed = fields.items("thinking_blocks")
    blocks += [_signed(item, f"{path}.thinking_blocks[{j}]") for j, item in enumerate(signed)]
    if thoughts and not signed:
        blocks.append(ThinkingBlock(thoughts))
    blocks += _content(fields, path)
    refusal = fields.text("refusal")
    if refusal:
        blocks.append(RefusalBlock(refusal))
    for j, item in enumerate(fields.items("tool_calls")):
        blocks.append(_tool_call(item, f"{path}.tool_calls[{j}]"))
    return blocks


def _signed(item: object, path: str) -> Block:
    fields = Fields(item, path)
    if fields.text("type") == "redacted_thinking":
        return RedactedBlock(fields.need_text("data"))
    return ThinkingBlock(fields.text("thinking") or "", fields.text("signature") or "")


def _tool_call(item: object, path: str) -> Block:
    fields = Fields(item, path)
    kind = fields.text("type") or "function"
    if kind != "function":
        assert isinstance(item, dict)
        return OpaqueBlock(f"{kind} tool call", item)
    function = fields.inner("function")
    name, arguments = function.need_text("name"), function.text("arguments")
    call_id = fields.text("id") or ""
    return ToolUseBlock(call_id, name, arguments or "", fields.rest() or None)


def _tool_result(fields: Fields, path: str) -> ToolResultBlock:
    call_id = fields.need_text("tool_call_id")
    return ToolResultBlock(call_id, tuple(_content(fields, path)), extra=fields.rest() or None)


def _tool(item: object, path: str) -> Tool:
    fields = Fields(item, path)
    if fields.need_text("type") != "function":
        assert isinstance(item, dict)
        return Tool(raw=item)
    function = fields.inner("function")
    return Tool(
        function.need_text("name"),
        function.text("description"),
        function.table("parameters"),
        function.flag("strict"),
        None,
        function.rest() | fields.rest() or None,
    )


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
        return ToolChoice("named", fields.inner("function").need_text("name"))
    return ToolChoice("raw", raw=value)


def _format(fields: Fields) -> ResponseFormat | None:
    value = fields.table("response_format")
    if value is None:
        return None
    form = Fields(value, "response_format")
    kind = form.need_text("type")
    if kind == "json_object":
        return ResponseFormat()
    if kind == "json_schema":
        inner = form.inner("json_schema")
        schema, name = inner.table("schema"), inner.text("name")
        return ResponseFormat(schema or {}, name, inner.text("description"), inner.flag("strict"))
    if kind == "text":
        return None
    raise wrong("response_format.type", "text, json_object or json_schema")


# -- requests: to the upstream --------------------------------------------------------------------


def request_from_canonical(request: ModelRequest) -> bytes:
    """Write a whole request; raises ``InvalidRequest`` for what chat cannot say."""
    require(request, NAME, CARRIES)
    own = request.source == NAME
    out: dict[str, Any] = {"model": request.model, "messages": _messages_out(request, own)}
    if own:
        out |= request.hints | request.extra
    newer = request.reasoning is not None or "max_completion_tokens" in request.hints
    limit = "max_completion_tokens" if newer else "max_tokens"
    reasoning = request.reasoning
    options = {
        limit: request.max_tokens,
        "temperature": request.temperature,
        "top_p": request.top_p,
        "top_k": request.top_k,
        "stop": list(request.stop) or None,
        "n": request.n,
        "seed": request.seed,
        "frequency_penalty": request.frequency_penalty,
        "presence_penalty": request.presence_penalty,
        "logit_bias": request.logit_bias,
        "logprobs": True if request.logprobs is not None else None,
        "top_logprobs": request.logprobs or None,
        "tools": [_tool_out(tool) for tool in request.tools] or None,
        "tool_choice": _choice_out(request.tool_choice) if request.tools or own else None,
        "parallel_tool_calls": request.parallel_tool_calls if request.tools or own else None,
        "response_format": _format_out(request.response_format),
        "reasoning_effort": effort_of(reasoning) if reasoning else None,
        "verbosity": request.verbosity,
        "user": short_user(request.user),
        "metadata": request.metadata if own else None,
        "prompt_cache_key": request.cache_key,
    }
    out |= {name: value for name, value in options.items() if value is not None}
    if request.stream:
        out["stream"] = True
        out["stream_options"] = out.get("stream_options", {}) | {"include_usage": True}
    else:
        out.pop("stream_options", None)
    return orjson.dumps(out)


def effort_of(reasoning: Reasoning) -> str | None:
    """The effort in OpenAI's words; a token budget becomes the nearest of three."""
    if reasoning.effort is not None or reasoning.budget is None:
        return reasoning.effort
    for limit, word in _BUDGETS:
        if reasoning.budget <= limit:
            return word
    return "high"


def _messages_out(request: ModelRequest, own: bool) -> list[dict[str, Any]]:
    out: list[dict[str, Any]] = []
    if request.system:
        out.append({"role": "system", "content": _content_out(request.system, own)})
    for message in request.messages:
        if message.role == "assistant":
            out.append(_assistant_out(message, own))
        else:
            out += _user_out(message, own)
    return out


def _user_out(message: Message, own: bool) -> list[dict[str, Any]]:
    """A turn; each tool result is a message of its own."""
    out: list[dict[str, Any]] = []
    said: list[Block] = []
    for block in message.blocks:
        if isinstance(block, ToolResultBlock):
            content = _content_out(block.content, own)
            out.append({"role": "tool", "tool_call_id": block.tool_use_id, "content": content})
        else:
            said.append(block)
    if said or not out:
        entry: dict[str, Any] = {"role": message.role, "content": _content_out(said, own)}
        if own and message.extra:
            entry |= message.extra
        out.append(entry)
    return out


def _content_out(blocks: Sequence[Block], own: bool) -> Any:
    """One plain text as a string, which every engine reads; else parts."""
    if not blocks:
        return ""
    if len(blocks) == 1 and isinstance(blocks[0], TextBlock) and not (own and blocks[0].extra):
        return blocks[0].text
    return [_part_out(block, own) for block in blocks]


def _part_out(block: Block, own: bool) -> dict[str, Any]:
    extra = (block.extra or {}) if own else {}
    if isinstance(block, TextBlock):
        return {"type": "text", "text": block.text} | extra
    if isinstance(block, ImageBlock):
        image = {"url": url_of_image(block)}
        if block.detail:
            image["detail"] = block.detail
        return {"type": "image_url", "image_url": image} | extra
    if isinstance(block, RefusalBlock):
        return {"type": "refusal", "refusal": block.text} | extra
    if isinstance(block, OpaqueBlock):
        return block.raw
    raise InvalidRequest(
        f"a {type(block).__name__} cannot stand in a chat message's content",
        reason="unsupported_translation",
        param="messages",
    )


def _assistant_out(message: Message, own: bool) -> dict[str, Any]:
    parts = [b for b in message.blocks if isinstance(b, TextBlock | OpaqueBlock | ImageBlock)]
    calls = [block for block in parts if isinstance(block, OpaqueBlock)]
    parts = [block for block in parts if not isinstance(block, OpaqueBlock)]
    out: dict[str, Any] = {"role": "assistant", "content": _content_out(parts, own) or None}
    tools = [_call_out(block) for block in message.blocks if isinstance(block, ToolUseBlock)]
    tools += [block.raw for block in calls]
    if tools:
        out["tool_calls"] = tools
    elif out["content"] is None:
        out["content"] = ""
    refusal = "".join(b.text for b in message.blocks if isinstance(b, RefusalBlock))
    if refusal:
        out["refusal"] = refusal
    if own:
        out |= thoughts_out(message.blocks) | (message.extra or {})
    return out


def thoughts_out(blocks: tuple[Block, ...]) -> dict[str, Any]:
    """Thoughts as clients of reasoning models read them; signed ones so that they can echo them."""
    thoughts = [block for block in blocks if isinstance(block, ThinkingBlock | RedactedBlock)]
    if not thoughts:
        return {}
    out: dict[str, Any] = {}
    text = "".join(block.text for block in thoughts if isinstance(block, ThinkingBlock))
    if text:
        out["reasoning_content"] = text
    if len(thoughts) > 1 or not isinstance(thoughts[0], ThinkingBlock) or thoughts[0].signature:
        out["thinking_blocks"] = [thought_out(block) for block in thoughts]
    return out


def thought_out(block: ThinkingBlock | RedactedBlock) -> dict[str, Any]:
    """One entry of ``thinking_blocks``."""
    if isinstance(block, RedactedBlock):
        return {"type": "redacted_thinking", "data": block.data}
    return {"type": "thinking", "thinking": block.text, "signature": block.signature}


def _call_out(block: ToolUseBlock) -> dict[str, Any]:
    return {
        "id": block.id,
        "type": "function",
        "function": {"name": block.name, "arguments": block.arguments},
    }


def _tool_out(tool: Tool) -> dict[str, Any]:
    if tool.raw is not None:
        return tool.raw
    function: dict[str, Any] = {"name": tool.name}
    if tool.description is not None:
        function["description"] = tool.description
    if tool.schema is not None:
        function["parameters"] = tool.schema
    if tool.strict is not None:
        function["strict"] = tool.strict
    return {"type": "function", "function": function}


def _choice_out(choice: ToolChoice | None) -> Any:
    if choice is None:
        return None
    if choice.mode == "named":
        return {"type": "function", "function": {"name": choice.name}}
    return choice.raw if choice.mode == "raw" else choice.mode


def _format_out(form: ResponseFormat | None) -> dict[str, Any] | None:
    if form is None:
        return None
    if form.schema is None:
        return {"type": "json_object"}
    inner: dict[str, Any] = {"name": form.name or "answer", "schema": form.schema}
    if form.description is not None:
        inner["description"] = form.description
    if form.strict is not None:
        inner["strict"] = form.strict
    return {"type": "json_schema", "json_schema": inner}


# -- replies ----------------------------------------------------------------------------------


def reply_to_canonical(body: bytes) -> ModelReply:
    """Read an upstream's whole reply; raises ``BackendFailure`` when it is not one."""
    try:
        fields = Fields(parse(body))
        choices = fields.items("choices")
        usage = fields.table("usage")
        fields.take("object")
        return ModelReply(
            id=fields.text("id") or "",
            model=fields.text("model") or "",
            created=fields.seconds("created"),
            choices=tuple(_reply_choice(c, f"choices[{i}]") for i, c in enumerate(choices)),
            usage=usage_in(Fields(usage, "usage")) if usage else None,
            source=NAME,
            extra=fields.rest(),
        )
    except InvalidRequest as e:
        raise bad_body(f"no chat completion: {e.message}") from None


def _reply_choice(choice: object, path: str) -> ReplyChoice:
    fields = Fields(choice, path)
    message = fields.inner("message")
    logprobs = fields.inner("logprobs").items("content")
    finish = fields.text("finish_reason")
    stop = STOP_OF_FINISH.get(finish, "end") if finish else None
    return ReplyChoice(tuple(_said(message, f"{path}.message")), stop, None, logprobs or None)


def reply_from_canonical(
    reply: ModelReply,
    request: ModelRequest | None = None,  # noqa: ARG001 - every codec's signature
) -> bytes:
    """Write a whole reply."""
    out: dict[str, Any] = {
        "id": own_id(reply.id, ID),
        "object": "chat.completion",
        "created": reply.created,
        "model": reply.model,
        "choices": [_choice_reply(i, choice) for i, choice in enumerate(reply.choices)],
    }
    if reply.usage is not None:
        out["usage"] = usage_out(reply.usage)
    if reply.source == NAME:
        out |= reply.extra
    return orjson.dumps(out)


def _choice_reply(index: int, choice: ReplyChoice) -> dict[str, Any]:
    text = "".join(block.text for block in choice.blocks if isinstance(block, TextBlock))
    refusal = "".join(block.text for block in choice.blocks if isinstance(block, RefusalBlock))
    calls = [_call_out(block) for block in choice.blocks if isinstance(block, ToolUseBlock)]
    silent = bool(calls or refusal) and not text
    message: dict[str, Any] = {
        "role": "assistant",
        "content": None if silent else text,
        "refusal": refusal or None,
    }
    if calls:
        message["tool_calls"] = calls
    return {
        "index": index,
        "message": message | thoughts_out(choice.blocks),
        "logprobs": None if choice.logprobs is None else {"content": choice.logprobs},
        "finish_reason": None if choice.stop is None else FINISH_OF_STOP[choice.stop],
    }
