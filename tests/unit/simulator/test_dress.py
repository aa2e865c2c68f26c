"""What providers add: fingerprints, tiers, all of usage, the settings of a response."""

from __future__ import annotations

import json

import pytest
from msgspec.structs import replace

from tests.support.fake_codec import asked, request_of
from tpo_mp.dialects import openai_chat
from tpo_mp.dialects.canonical import (
    ModelReply,
    RefusalBlock,
    ReplyChoice,
    StopReason,
    TextBlock,
    ThinkingBlock,
    TokenUsage,
)
from tpo_mp.simulator import dress
from tpo_mp.types import Dialect

REPLY = ModelReply(id="r", model="m", choices=(ReplyChoice(()),), usage=TokenUsage(5, 7, 2, 1, 3))


def test_chat_has_tier_fingerprint_and_details() -> None:
    """One fingerprint per model; chunks show null usage only to who asked for it."""
    extra = dress.reply_extra(Dialect.OPENAI_CHAT, asked(), REPLY)
    assert extra["service_tier"] == "default"
    assert extra["usage"]["prompt_tokens_details"]["cached_tokens"] == 2
    assert extra["usage"]["completion_tokens_details"]["reasoning_tokens"] == 3
    plain = dress.start_extra(Dialect.OPENAI_CHAT, asked(), REPLY)
    assert plain["system_fingerprint"] == extra["system_fingerprint"]
    assert "usage" not in plain
    wanting = asked(stream=True, stream_options={"include_usage": True})
    assert dress.start_extra(Dialect.OPENAI_CHAT, wanting, REPLY)["usage"] is None


@pytest.mark.parametrize("stop", ["end", "length", "stop_sequence"])
def test_plain_chat_is_written_as_the_codec_writes_it(stop: StopReason) -> None:
    """Byte for byte, whatever it says."""
    said = ReplyChoice((TextBlock('r\u00edos "\n'),), stop)
    reply = replace(REPLY, id="chatcmpl-1", choices=(said,), created=7, source=openai_chat.NAME)
    extra = dress.reply_extra(Dialect.OPENAI_CHAT, asked(), reply)
    whole = openai_chat.reply_from_canonical(replace(reply, extra=extra), asked())
    assert dress.plain_chat(reply) == whole


def test_chat_that_is_more_than_one_text_is_not_plain() -> None:
    """Further choices, thoughts, refusals and probabilities are the codec's to write."""
    text = TextBlock("x")
    for choices in (
        (),
        (ReplyChoice(()),),
        (ReplyChoice((text,)), ReplyChoice((text,))),
        (ReplyChoice((ThinkingBlock("t"), text)),),
        (ReplyChoice((RefusalBlock("no"),)),),
        (ReplyChoice((text,), "end", None, [{"token": "x"}]),),
    ):
        assert dress.plain_chat(replace(REPLY, choices=choices)) is None
    assert dress.plain_chat(replace(REPLY, choices=(ReplyChoice((text,)),), usage=None)) is None


def test_legacy_completions_know_no_tier() -> None:
    """Only the fingerprint."""
    extra = dress.start_extra(Dialect.OPENAI_COMPLETIONS, asked(), REPLY)
    assert set(extra) == {"system_fingerprint"}
    chunk = json.loads(dress.usage_chunk(Dialect.OPENAI_COMPLETIONS, REPLY, REPLY.usage)[6:])
    assert (chunk["object"], chunk["choices"]) == ("text_completion", [])
    assert chunk["usage"]["total_tokens"] == 12


def test_messages_split_the_prompt_by_cache() -> None:
    """What was read and written is not input; a stream begins with one token of output."""
    body = {"model": "m", "max_tokens": 9, "messages": [{"role": "user", "content": "x"}]}
    request = request_of(body, "anthropic_messages")
    usage = dress.reply_extra(Dialect.ANTHROPIC_MESSAGES, request, REPLY)["usage"]
    assert (usage["input_tokens"], usage["cache_read_input_tokens"]) == (2, 2)
    assert usage["service_tier"] == "standard"
    begun = dress.start_extra(Dialect.ANTHROPIC_MESSAGES, request, REPLY)["usage"]
    assert begun["output_tokens"] == 1


def test_response_repeats_its_settings() -> None:
    """Format, reasoning and the rest as they were asked for."""
    form = {"type": "json_schema", "name": "n", "schema": {"type": "object"}}
    body = {"model": "m", "input": "x", "text": {"format": form}, "reasoning": {"effort": "low"},
            "store": False}  # fmt: skip
    request = request_of(body, "openai_responses")
    extra = dress.reply_extra(Dialect.OPENAI_RESPONSES, request, REPLY)
    assert extra["text"]["format"]["schema"] == {"type": "object"}
    assert extra["reasoning"]["effort"] == "low"
    assert extra["store"] is False
