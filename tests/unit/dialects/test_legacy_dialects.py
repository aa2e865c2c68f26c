"""The legacy completions of both families, and embeddings."""

from __future__ import annotations

import json
from typing import Any

import pytest
from openai.types import Completion

from tests.support.dialects import PLAIN, REPLIES, body, datas, decode, encode
from tpo_mp.dialects import (
    anthropic_complete,
    anthropic_messages,
    openai_chat,
    openai_completions,
    openai_embeddings,
)
from tpo_mp.dialects.canonical import (
    Message,
    ModelReply,
    Ping,
    ReplyChoice,
    ReplyFailed,
    TextBlock,
)
from tpo_mp.dialects.translate import (
    StreamTranslator,
    aggregate,
    events_of,
    translate_reply,
    translate_request,
)
from tpo_mp.errors import InvalidRequest, Shed

TRANSCRIPT = "Be brief.\n\nHuman: Hi\n\nAssistant: Yes?\n\nHuman: Why?\n\nAssistant:"
COMPLETE: dict[str, Any] = {"model": "m", "prompt": TRANSCRIPT, "max_tokens_to_sample": 9}


def test_the_sdk_reads_every_completion_chunk() -> None:
    """Bodies and chunks parse as the SDK's own types."""
    reply = openai_completions.reply_to_canonical(body(REPLIES["openai_completions"]))
    for data in datas(encode("openai_completions", events_of(reply))):
        for choice in data["choices"]:
            # The service streams null here, which the SDK's type does not know.
            choice["finish_reason"] = choice["finish_reason"] or "stop"
        Completion.model_validate(data)
    shown = Completion.model_validate_json(openai_completions.reply_from_canonical(reply))
    assert shown.choices[0].text == "Hi there"


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"prompt": ["a", "b"]}, "prompt"),
        ({"prompt": [1, 2]}, "prompt"),
        ({"echo": True}, "echo"),
        ({"best_of": 3}, "best_of"),
        ({"suffix": "x"}, "suffix"),
    ],
)
def test_what_only_completions_know_is_refused_by_name(fields: dict[str, Any], param: str) -> None:
    """Token prompts, echoes and suffixes have no counterpart."""
    with pytest.raises(InvalidRequest) as refused:
        translate_request(
            openai_completions.request_to_canonical(body(PLAIN["openai_completions"], **fields)),
            openai_chat,
        )
    assert refused.value.reason == "unsupported_translation"
    assert refused.value.param == param


@pytest.mark.parametrize("prompt", ["x", ["x"], ["x", "y"], [1, 2], [[1], [2]]])
def test_every_kind_of_prompt_and_input_is_accepted(prompt: Any) -> None:
    """Words, lists of words, token numbers and lists of those pass to their own backend."""
    fields = body(PLAIN["openai_completions"], prompt=prompt)
    assert openai_completions.decode_request(fields).model == "m"
    assert openai_embeddings.decode_request(body({"model": "m", "input": prompt})).model == "m"


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"input": ""}, "input"),
        ({"input": []}, "input"),
        ({"input": {"a": 1}}, "input"),
        ({"encoding_format": "int8"}, "encoding_format"),
        ({"dimensions": 0}, "dimensions"),
    ],
)
def test_bad_embedding_fields_are_named(fields: dict[str, Any], param: str) -> None:
    """The head's checks say which field is wrong."""
    with pytest.raises(InvalidRequest) as refused:
        openai_embeddings.decode_request(body({"model": "m", "input": "x"}, **fields))
    assert refused.value.param == param


def test_embeddings_are_neither_streamed_nor_counted_anew() -> None:
    """The head tells routing what it asks of every dialect."""
    head = openai_embeddings.decode_request(body({"model": "m", "input": "x", "user": "u"}))
    assert (head.stream, head.affinity, head.usage_wanted) == (None, "u", True)
    usage = openai_embeddings.usage_of(b'{"usage":{"prompt_tokens":4,"total_tokens":4}}')
    assert usage is not None
    assert usage.prompt == 4


def test_a_transcript_is_a_conversation() -> None:
    """Turns, system words and the limit are read from the prompt and written back."""
    asked = anthropic_complete.request_to_canonical(body(COMPLETE))
    assert asked.system == (TextBlock("Be brief."),)
    assert asked.messages == (
        Message("user", (TextBlock("Hi"),), "prompt"),
        Message("assistant", (TextBlock("Yes?"),), "prompt"),
        Message("user", (TextBlock("Why?"),), "prompt"),
    )
    sent = json.loads(translate_request(asked, anthropic_messages))
    assert sent["system"] == "Be brief."
    assert [turn["role"] for turn in sent["messages"]] == ["user", "assistant", "user"]
    assert sent["max_tokens"] == 9
    assert json.loads(translate_request(asked, anthropic_complete)) == COMPLETE


def test_a_prompt_that_is_no_transcript_is_refused() -> None:
    """The wire demands a human's turn."""
    with pytest.raises(InvalidRequest) as refused:
        anthropic_complete.request_to_canonical(body(COMPLETE | {"prompt": "Hi"}))
    assert refused.value.param == "prompt"


@pytest.mark.parametrize("backend", [anthropic_messages, openai_chat, anthropic_complete])
def test_a_completion_is_served_by_any_backend(backend: Any) -> None:
    """Whole and streamed, the words and the stop reason arrive."""
    reply = ModelReply(
        id="x_1", model="m", created=1, choices=(ReplyChoice((TextBlock("Because."),), "length"),)
    )
    asked = anthropic_complete.request_to_canonical(body(COMPLETE | {"stream": True}))
    whole = backend.reply_from_canonical(reply)
    shown = json.loads(translate_reply(whole, backend, anthropic_complete, asked, created=1))
    assert shown["type"] == "completion"
    assert shown["completion"] == "Because."
    assert shown["stop_reason"] == "max_tokens"
    assert anthropic_complete.usage_of(json.dumps(shown).encode()) is None
    plain = COMPLETE if backend is anthropic_complete else PLAIN[backend.NAME]
    encoder = backend.StreamEncoder(backend.request_to_canonical(body(plain)))
    upstream = b"".join(encoder.encode(event) for event in events_of(reply))
    stream = StreamTranslator(backend, anthropic_complete, asked, created=1)
    sent = stream.feed(upstream) + stream.close()
    assert "".join(data["completion"] for data in datas(sent)) == "Because."
    assert aggregate(decode(anthropic_complete, sent)).choices == reply.choices
    watch = anthropic_complete.watch()
    watch.feed(sent)
    assert (watch.ended, watch.finish_reason) == (True, "max_tokens")


def test_a_cut_completion_stream_is_an_error() -> None:
    """Without a stop reason the stream did not end; pings and errors pass."""
    stream = b'event: completion\ndata: {"type":"completion","completion":"a"}\n\n'
    ping = b'event: ping\ndata: {"type":"ping"}\n\n'
    events = decode(anthropic_complete, ping + stream)
    assert events[0] == Ping()
    assert isinstance(events[-1], ReplyFailed)
    event = anthropic_complete.error_event(Shed("full"))
    assert b"overloaded_error" in event
    failed = decode(anthropic_complete, event)[-1]
    assert isinstance(failed, ReplyFailed)
    assert failed.error.reason == "upstream_overloaded"
    watch = anthropic_complete.watch()
    watch.feed(event)
    assert (watch.ended, watch.failed) == (False, True)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"max_tokens_to_sample": 0}, "max_tokens_to_sample"),
        ({"prompt": ""}, "prompt"),
        ({"temperature": 2}, "temperature"),
    ],
)
def test_bad_completion_fields_are_named(fields: dict[str, Any], param: str) -> None:
    """The head's checks say which field is wrong."""
    with pytest.raises(InvalidRequest) as refused:
        anthropic_complete.decode_request(body(COMPLETE | fields))
    assert refused.value.param == param
