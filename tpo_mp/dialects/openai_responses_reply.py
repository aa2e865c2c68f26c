"""OpenAI responses: whole replies to and from the canonical model.

Source: OpenAI API reference, the response object.  Each block is an output item of its own; an
item's id is the reply's id and the item's place, so a stream and a whole reply name them alike.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import orjson

from tpo_mp.errors import InvalidRequest

from .body import Fields, parse, wrong
from .canonical import (
    Block,
    ModelReply,
    ModelRequest,
    OpaqueBlock,
    RedactedBlock,
    RefusalBlock,
    ReplyChoice,
    StopReason,
    TextBlock,
    ThinkingBlock,
    TokenUsage,
    ToolUseBlock,
    own_id,
)
from .failure import bad_body, of_object
from .openai_responses_request import (
    ID,
    NAME,
    choice_out,
    content_in,
    reasoning_out,
    redacted_out,
    said_item,
    tool_out,
)


def reply_to_canonical(body: bytes) -> ModelReply:
    """Read an upstream's whole reply; raises ``BackendFailure`` when it is not one, or failed."""
    try:
        return reply_in(Fields(parse(body)))
    except InvalidRequest as e:
        raise bad_body(f"no response object: {e.message}") from None


def reply_in(fields: Fields) -> ModelReply:
    """Read a response object."""
    if fields.text("object") != "response":
        raise wrong("object", "response")
    error = fields.table("error")
    if error is not None:
        raise of_object(error)
    blocks: list[Block] = []
    logprobs: list[dict[str, Any]] = []
    for i, item in enumerate(fields.items("output")):
        path = f"output[{i}]"
        inner = Fields(item, path)
        kind = inner.need_text("type")
        if kind == "message":
            for block in content_in(inner.take("content"), f"{path}.content"):
                logprobs += (block.extra or {}).get("logprobs") or []
                blocks.append(block)
        else:
            blocks.append(said_item(inner, item, kind))
    usage = fields.table("usage")
    details = fields.inner("incomplete_details")
    stop = stop_of(fields.text("status"), details.text("reason"), blocks)
    return ModelReply(
        id=fields.text("id") or "",
        model=fields.text("model") or "",
        created=fields.seconds("created_at"),
        choices=(ReplyChoice(tuple(blocks), stop, None, logprobs or None),),
        usage=usage_in(Fields(usage, "usage")) if usage is not None else None,
        source=NAME,
        extra=fields.rest(),
    )


def stop_of(status: str | None, reason: str | None, blocks: Sequence[Block]) -> StopReason:
    """Why the model stopped: this wire says it only where the answer is incomplete."""
    if status == "cancelled" or (status == "incomplete" and not reason):
        return "abort"
    if status == "incomplete":
        return "content_filter" if reason == "content_filter" else "length"
    return "tool_use" if any(isinstance(block, ToolUseBlock) for block in blocks) else "end"


def usage_in(fields: Fields) -> TokenUsage:
    """Read ``usage``."""
    details = fields.inner("input_tokens_details")
    return TokenUsage(
        fields.whole("input_tokens") or 0,
        fields.whole("output_tokens") or 0,
        details.whole("cached_tokens") or 0,
        details.whole("cache_write_tokens") or 0,
        fields.inner("output_tokens_details").whole("reasoning_tokens") or 0,
    )


def usage_out(usage: TokenUsage) -> dict[str, Any]:
    """Write ``usage``."""
    return {
        "input_tokens": usage.prompt,
        "input_tokens_details": {
            "cached_tokens": usage.cached,
            "cache_write_tokens": usage.cache_write,
        },
        "output_tokens": usage.completion,
        "output_tokens_details": {"reasoning_tokens": usage.reasoning},
        "total_tokens": usage.prompt + usage.completion,
    }


def reply_from_canonical(reply: ModelReply, request: ModelRequest | None = None) -> bytes:
    """Write a whole reply; only its first choice fits.  ``request``'s settings are echoed."""
    choice = reply.choices[0] if reply.choices else ReplyChoice(())
    reply_id = own_id(reply.id, ID)
    output = [item_out(block, reply_id, i) for i, block in enumerate(choice.blocks)]
    if choice.logprobs is not None:
        for item in output:
            if item["type"] == "message":
                item["content"][0]["logprobs"] = choice.logprobs
                break
    shell = shell_of(reply_id, reply.created, reply.model, request)
    if reply.source == NAME:
        shell |= reply.extra
    return orjson.dumps(shell | outcome(choice.stop or "end", output, reply.usage))


def shell_of(
    reply_id: str, created: int, model: str, request: ModelRequest | None
) -> dict[str, Any]:
    """A response object without its outcome."""
    tools = request.tools if request else ()
    choice = choice_out(request.tool_choice) if request else None
    parallel = request.parallel_tool_calls if request else None
    system = "\n\n".join(block.text for block in request.system) if request else ""
    return {
        "id": reply_id,
        "object": "response",
        "created_at": created,
        "status": "in_progress",
        "error": None,
        "incomplete_details": None,
        "instructions": system or None,
        "max_output_tokens": request.max_tokens if request else None,
        "metadata": (request.metadata if request else None) or {},
        "model": model,
        "output": [],
        "parallel_tool_calls": True if parallel is None else parallel,
        "temperature": request.temperature if request else None,
        "tool_choice": choice or "auto",
        "tools": [tool_out(tool, True) for tool in tools],
        "top_p": request.top_p if request else None,
        "usage": None,
    }


def outcome(
    stop: StopReason, output: list[dict[str, Any]], usage: TokenUsage | None
) -> dict[str, Any]:
    """The fields of a response object that its end decides."""
    out: dict[str, Any] = {"status": "completed", "incomplete_details": None, "output": output}
    if stop in ("length", "context"):
        out |= {"status": "incomplete", "incomplete_details": {"reason": "max_output_tokens"}}
    elif stop == "abort":
        out |= {"status": "incomplete", "incomplete_details": {}}  # no reason of theirs fits
    elif stop in ("content_filter", "refusal"):
        refused = any(p.get("type") == "refusal" for i in output for p in i.get("content") or ())
        if not refused:
            out |= {"status": "incomplete", "incomplete_details": {"reason": "content_filter"}}
    if usage is not None:
        out["usage"] = usage_out(usage)
    return out


def item_out(block: Block, reply_id: str, index: int) -> dict[str, Any]:
    """Write one block as an output item; its id is the reply's and its place."""
    stem = f"{reply_id.removeprefix(ID)}_{index}"
    if isinstance(block, TextBlock | RefusalBlock):
        return {
            "id": f"msg_{stem}",
            "type": "message",
            "status": "completed",
            "role": "assistant",
            "content": [content_out(block)],
        }
    if isinstance(block, ToolUseBlock):
        return {
            "id": f"fc_{stem}",
            "type": "function_call",
            "status": "completed",
            "call_id": block.id,
            "name": block.name,
            "arguments": block.arguments,
        }
    if isinstance(block, ThinkingBlock):
        return {"id": f"rs_{stem}"} | reasoning_out(block)
    if isinstance(block, RedactedBlock):
        return redacted_out(block, stem)
    if isinstance(block, OpaqueBlock):
        return block.raw
    raise bad_body(f"a {type(block).__name__} in a reply")


def content_out(block: TextBlock | RefusalBlock) -> dict[str, Any]:
    """The content part of a message item."""
    if isinstance(block, RefusalBlock):
        return {"type": "refusal", "refusal": block.text}
    return {"type": "output_text", "text": block.text, "annotations": [], "logprobs": []}
