"""Every client dialect with every backend dialect: request, reply, stream, tools, errors."""

from __future__ import annotations

import json
from typing import Any

import pytest
from msgspec.structs import replace

from tests.support.dialects import (
    FOUR,
    PAIRS,
    PLAIN,
    REPLIES,
    TOOL_PAIRS,
    TOOL_REPLIES,
    TOOLS,
    body,
    decode,
    encode,
)
from tpo_mp.dialects import support
from tpo_mp.dialects.canonical import ModelReply, ModelRequest, ReplyFailed, ToolUseBlock
from tpo_mp.dialects.translate import (
    StreamTranslator,
    aggregate,
    events_of,
    translate_reply,
    translate_request,
)
from tpo_mp.errors import BackendFailure, InvalidRequest, RateLimited, Shed


def essence(request: ModelRequest) -> dict[str, Any]:
    """What a model would see of a request, whatever its source."""
    blocks = [
        (message.role, type(block).__name__, block_words(block))
        for message in request.messages
        for block in message.blocks
    ]
    return {
        "model": request.model,
        "system": [block.text for block in request.system],
        "blocks": blocks,
        "tools": [(tool.name, tool.description, tool.schema) for tool in request.tools],
        "choice": request.tool_choice,
        "parallel": request.parallel_tool_calls,
        "numbers": (request.max_tokens, request.temperature, request.top_p),
        "stream": request.stream,
    }


def block_words(block: Any) -> object:
    """The words of a block."""
    if hasattr(block, "content"):
        return block.tool_use_id, [block_words(inner) for inner in block.content]
    if isinstance(block, ToolUseBlock):
        return block.id, block.name, json.loads(block.arguments)
    return getattr(block, "text", None) or (block.url, block.media_type, block.data)


def answer(reply: ModelReply) -> tuple[Any, ...]:
    """What a client would see of a reply, whatever its source."""
    choice = reply.choices[0]
    words = [(type(block).__name__, block_words(block)) for block in choice.blocks]
    return reply.model, words, choice.stop


@pytest.mark.parametrize(("client", "backend"), PAIRS)
@pytest.mark.parametrize("stream", [False, True])
def test_a_plain_request_means_the_same_in_every_dialect(
    client: str, backend: str, stream: bool
) -> None:
    """Question, limits and delivery arrive whatever the two dialects are."""
    source, target = support.codec(client), support.codec(backend)
    request = source.request_to_canonical(body(PLAIN[client], stream=stream))
    sent = translate_request(request, target)
    assert essence(target.request_to_canonical(sent)) == essence(request)
    target.decode_request(sent)


@pytest.mark.parametrize(("client", "backend"), TOOL_PAIRS)
def test_a_tool_round_trip_means_the_same_in_every_dialect(client: str, backend: str) -> None:
    """System prompt, parallel calls, their results and an image arrive; ids pair up."""
    source, target = support.codec(client), support.codec(backend)
    request = source.request_to_canonical(body(TOOLS[client]))
    sent = translate_request(request, target, model="other", stream=True)
    target.decode_request(sent)
    expected = essence(request) | {"model": "other", "stream": True}
    assert essence(target.request_to_canonical(sent)) == expected


@pytest.mark.parametrize("client", sorted(set(FOUR) - {"openai_completions"}))
def test_a_prompt_cannot_hold_a_conversation(client: str) -> None:
    """Towards legacy completions, what is more than one message is refused by name."""
    request = support.codec(client).request_to_canonical(body(TOOLS[client]))
    with pytest.raises(InvalidRequest) as refused:
        translate_request(request, support.codec("openai_completions"))
    assert refused.value.reason == "unsupported_translation"
    assert refused.value.param in ("messages", "system", "instructions")


@pytest.mark.parametrize(("client", "backend"), PAIRS)
def test_a_reply_means_the_same_in_every_dialect(client: str, backend: str) -> None:
    """Words, stop reason and usage come back, and the client's own decoder takes them."""
    source, target = support.codec(backend), support.codec(client)
    request = target.request_to_canonical(body(PLAIN[client]))
    sent = translate_reply(body(REPLIES[backend]), source, target, request, created=5)
    shown = target.reply_to_canonical(sent)
    original = source.reply_to_canonical(body(REPLIES[backend]))
    assert answer(shown) == answer(original)
    assert shown.usage == original.usage
    usage = target.usage_of(sent)
    assert usage is not None
    assert (usage.prompt, usage.completion) == (20, 7)


@pytest.mark.parametrize(("client", "backend"), PAIRS)
def test_an_answer_that_was_broken_off_never_looks_whole(client: str, backend: str) -> None:
    """Whole or streamed, ``abort`` comes through dialects that have no word for it, too."""
    source, target = support.codec(backend), support.codec(client)
    request = target.request_to_canonical(body(PLAIN[client]))
    original = source.reply_to_canonical(body(REPLIES[backend]))
    choices = tuple(replace(choice, stop="abort") for choice in original.choices)
    original = replace(original, choices=choices)
    sent = translate_reply(
        source.reply_from_canonical(original, request), source, target, request, created=5
    )
    assert target.reply_to_canonical(sent).choices[0].stop == "abort"
    stream = StreamTranslator(source, target, request, created=5)
    told = stream.feed(encode(backend, events_of(original))) + stream.close()
    assert stream.finish_reason == "abort"
    assert aggregate(decode(target, told)).choices[0].stop == "abort"


@pytest.mark.parametrize(("client", "backend"), TOOL_PAIRS)
def test_a_tool_call_comes_back_in_every_dialect(client: str, backend: str) -> None:
    """Name, arguments and id of the call survive, and the stop reason says why."""
    source, target = support.codec(backend), support.codec(client)
    request = target.request_to_canonical(body(TOOLS[client]))
    sent = translate_reply(body(TOOL_REPLIES[backend]), source, target, request, created=5)
    shown = target.reply_to_canonical(sent)
    assert answer(shown) == answer(source.reply_to_canonical(body(TOOL_REPLIES[backend])))
    assert shown.choices[0].stop == "tool_use"


@pytest.mark.parametrize("size", [1, 7, 1 << 20])
@pytest.mark.parametrize(("client", "backend"), PAIRS)
def test_a_stream_means_the_same_in_every_dialect(client: str, backend: str, size: int) -> None:
    """A translated stream, cut anywhere, aggregates to the backend's answer."""
    replies = REPLIES if "openai_completions" in (client, backend) else TOOL_REPLIES
    source, target = support.codec(backend), support.codec(client)
    original = source.reply_to_canonical(body(replies[backend]))
    upstream = encode(backend, events_of(original))
    wants = {"stream_options": {"include_usage": True}}
    request = target.request_to_canonical(body(PLAIN[client], stream=True, **wants))
    stream = StreamTranslator(source, target, request, created=5)
    sent = b"".join(stream.feed(upstream[i : i + size]) for i in range(0, len(upstream), size))
    sent += stream.close()
    shown = aggregate(decode(target, sent))
    assert answer(shown) == answer(original)
    assert shown.usage == original.usage == stream.usage
    assert stream.ended
    assert stream.error is None
    watch = target.watch()
    watch.feed(sent)
    assert watch.ended
    assert not watch.failed
    assert watch.usage is not None
    assert (watch.usage.prompt, watch.usage.completion) == (20, 7)


@pytest.mark.parametrize(("client", "backend"), PAIRS)
def test_a_cut_stream_ends_with_an_error_in_every_dialect(client: str, backend: str) -> None:
    """Half a stream never looks like success: the client's dialect says that it broke off."""
    source, target = support.codec(backend), support.codec(client)
    upstream = encode(backend, events_of(source.reply_to_canonical(body(REPLIES[backend]))))
    request = target.request_to_canonical(body(PLAIN[client], stream=True))
    stream = StreamTranslator(source, target, request, created=5)
    sent = stream.feed(upstream[: upstream.rfind(b"data: ") - 40]) + stream.close()
    assert stream.error is not None
    assert stream.error.reason == "truncated_stream"
    failed = decode(target, sent)[-1]
    assert isinstance(failed, ReplyFailed)
    assert failed.error.reason != "truncated_stream"
    assert "before its end" in failed.error.message
    watch = target.watch()
    watch.feed(sent)
    assert watch.failed
    assert stream.feed(b"data: more\n\n") == b""


@pytest.mark.parametrize(("client", "backend"), PAIRS)
def test_an_error_means_the_same_in_every_dialect(client: str, backend: str) -> None:
    """Status class and message of an upstream's error reach the client in its own words."""
    source, target = support.codec(backend), support.codec(client)
    for error in (
        RateLimited("slow down"),
        Shed("full"),
        BackendFailure("broken"),
        InvalidRequest("bad field", param="tools"),
    ):
        status = source.error_status(error)
        seen = source.error_to_canonical(source.error_body(error, "req-1"), status)
        assert seen.status == error.status
        assert error.message in seen.message
        assert seen.body is None
        shown = target.error_to_canonical(target.error_body(seen), target.error_status(seen))
        assert shown.status == error.status
        assert error.message in shown.message


@pytest.mark.parametrize(("client", "backend"), PAIRS)
def test_an_error_event_means_the_same_in_every_dialect(client: str, backend: str) -> None:
    """An in-band error of the upstream is the client's in-band error."""
    source, target = support.codec(backend), support.codec(client)
    request = target.request_to_canonical(body(PLAIN[client], stream=True))
    stream = StreamTranslator(source, target, request, created=5)
    sent = stream.feed(source.error_event(RateLimited("slow down")))
    last = decode(target, sent)[-1]
    assert isinstance(last, ReplyFailed)
    assert last.error.status == 429
    assert last.error.message == "slow down"


@pytest.mark.parametrize(("client", "backend"), PAIRS)
def test_garbage_from_upstream_is_a_failure_in_every_dialect(client: str, backend: str) -> None:
    """No body or event of an upstream can make more than a ``BackendFailure``."""
    source, target = support.codec(backend), support.codec(client)
    request = target.request_to_canonical(body(PLAIN[client]))
    for garbage in (b"", b"<html>", b"[]", b"null", b'{"choices":7,"content":7,"output":7}'):
        with pytest.raises(BackendFailure):
            translate_reply(garbage, source, target, request, created=5)
    stream = StreamTranslator(source, target, request, created=5)
    assert stream.feed(b"data: {]\n\n")
    assert stream.error is not None
    assert stream.error.reason == "bad_upstream_body"
