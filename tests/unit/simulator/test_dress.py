"""What providers add: fingerprints, tiers, all of usage, the settings of a response."""

from __future__ import annotations

import json

from tests.support.fake_codec import asked, request_of
from tpo_mp.dialects.canonical import ModelReply, ReplyChoice, TokenUsage
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


def test_legacy_completions_know_no_tier() -> None:
    """Only the fingerprint."""
    extra = dress.start_extra(Dialect.OPENAI_COMPLETIONS, asked(), REPLY)
    assert set(extra) == {"system_fingerprint"}
    chunk = json.loads(dress.usage_chunk(Dialect.OPENAI_COMPLETIONS, REPLY)[6:])
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
