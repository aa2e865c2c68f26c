"""Dialects under random input: replies survive, cuts do not matter, bad bodies are only refused."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.dialects import FOUR, PLAIN, TOOLS, body, decode, encode
from tests.support.effort import examples
from tpo_mp.dialects import (
    anthropic_complete,
    anthropic_messages,
    openai_chat,
    openai_completions,
    openai_embeddings,
    openai_responses,
    support,
)
from tpo_mp.dialects.canonical import (
    Block,
    ModelReply,
    RedactedBlock,
    RefusalBlock,
    ReplyChoice,
    StopReason,
    TextBlock,
    ThinkingBlock,
    TokenUsage,
    ToolUseBlock,
)
from tpo_mp.dialects.translate import StreamTranslator, aggregate, events_of
from tpo_mp.errors import BackendFailure, InvalidRequest

SPICE = ["data: [DONE]", "\n\n", "\r\n", "data: ", "event: message_stop", '"usage":{', "é", "漢😀"]
words = st.one_of(
    st.text(st.characters(exclude_categories=("Cs",)), min_size=1, max_size=12),
    st.lists(st.sampled_from(SPICE), min_size=1, max_size=3).map("".join),
)
scalars = st.one_of(st.none(), st.booleans(), st.integers(-(10**9), 10**9), words)
values = st.recursive(
    scalars, lambda v: st.lists(v, max_size=3) | st.dictionaries(words, v, max_size=3), max_leaves=6
)
arguments = st.dictionaries(words, values, max_size=3).map(
    lambda value: json.dumps(value, ensure_ascii=False, separators=(",", ":"))
)
texts = st.builds(TextBlock, words)
refusals = st.builds(RefusalBlock, words)
thoughts = st.builds(ThinkingBlock, words, st.one_of(st.just(""), words))
redacted = st.builds(RedactedBlock, words)
counts = st.integers(0, 10**6)


@st.composite
def usages(draw: st.DrawFn) -> TokenUsage:
    """Counts whose parts fit into their wholes."""
    cached, written, fresh = draw(counts), draw(counts), draw(counts)
    reasoning, said = draw(counts), draw(counts)
    return TokenUsage(cached + written + fresh, reasoning + said, cached, written, reasoning)


def tools() -> st.SearchStrategy[list[Block]]:
    """Tool calls with ids of their own."""
    return st.lists(st.tuples(words, arguments), max_size=3).map(
        lambda calls: [
            ToolUseBlock(f"call_{i}", name, args) for i, (name, args) in enumerate(calls)
        ]
    )


def stops(*known: StopReason) -> st.SearchStrategy[StopReason]:
    """One of the stop reasons a dialect knows."""
    return st.sampled_from(known)


@st.composite
def chat_choices(draw: st.DrawFn) -> ReplyChoice:
    """What a chat message can hold: thoughts, words, a refusal, calls."""
    blocks: list[Block] = []
    blocks += draw(st.lists(st.builds(ThinkingBlock, words), max_size=1))
    blocks += draw(st.lists(texts, max_size=1)) + draw(st.lists(refusals, max_size=1))
    blocks += draw(tools())
    return ReplyChoice(tuple(blocks), draw(stops("end", "length", "tool_use", "content_filter")))


def chat_replies(prefix: str, choices: st.SearchStrategy[ReplyChoice]) -> Any:
    """Replies of the two dialects that know several choices."""
    return st.builds(
        ModelReply,
        id=st.just(prefix + "1"),
        model=words,
        created=st.integers(1, 2**31),
        choices=st.lists(choices, min_size=1, max_size=3).map(tuple),
        usage=usages(),
    )


completion_choices = st.builds(
    ReplyChoice,
    st.lists(texts, max_size=1).map(tuple),
    stops("end", "length", "content_filter"),
)


@st.composite
def message_replies(draw: st.DrawFn) -> ModelReply:
    """What an Anthropic message can hold, in any order."""
    blocks = draw(st.lists(st.one_of(texts, thoughts, redacted), max_size=4)) + draw(tools())
    stop = draw(stops("end", "length", "stop_sequence", "tool_use", "refusal", "pause", "context"))
    sequence = draw(words) if stop == "stop_sequence" else None
    choice = ReplyChoice(tuple(draw(st.permutations(blocks))), stop, sequence)
    return ModelReply(id="msg_1", model=draw(words), choices=(choice,), usage=draw(usages()))


@st.composite
def response_replies(draw: st.DrawFn) -> ModelReply:
    """What a response can hold, in any order; its stop reason follows from it."""
    said: list[Block] = draw(st.lists(st.one_of(texts, refusals, thoughts, redacted), max_size=4))
    calls = draw(tools())
    blocks = tuple(draw(st.permutations(said + calls)))
    stop: StopReason = draw(stops("tool_use" if calls else "end", "length"))
    return ModelReply(
        id="resp_1",
        model=draw(words),
        created=draw(st.integers(1, 2**31)),
        choices=(ReplyChoice(blocks, stop),),
        usage=draw(usages()),
    )


CARRIED: dict[str, st.SearchStrategy[ModelReply]] = {
    "openai_chat": chat_replies("chatcmpl-", chat_choices()),
    "openai_completions": chat_replies("cmpl-", completion_choices),
    "anthropic_messages": message_replies(),
    "openai_responses": response_replies(),
}


def same(reply: ModelReply, other: ModelReply) -> None:
    """Two replies say the same; keys only one dialect knows do not count."""
    assert (reply.id, reply.model, reply.usage) == (other.id, other.model, other.usage)
    assert len(reply.choices) == len(other.choices)
    for one, two in zip(reply.choices, other.choices, strict=True):
        assert (one.stop, one.stop_sequence) == (two.stop, two.stop_sequence)
        assert [bare(block) for block in one.blocks] == [bare(block) for block in two.blocks]


def bare(block: Block) -> tuple[Any, ...]:
    """A block without its extra keys; tool arguments as the value they spell."""
    if isinstance(block, ToolUseBlock):
        return block.id, block.name, json.loads(block.arguments)
    return type(block), *(
        getattr(block, f) for f in ("text", "signature", "data") if hasattr(block, f)
    )


@pytest.mark.parametrize("name", FOUR)
@settings(max_examples=examples(50))
@given(data=st.data())
def test_a_reply_survives_its_dialect(name: str, data: st.DataObject) -> None:
    """Encode and decode gives back everything the dialect carries, signatures to the character."""
    reply = data.draw(CARRIED[name])
    codec = support.codec(name)
    same(reply, codec.reply_to_canonical(codec.reply_from_canonical(reply)))


@pytest.mark.parametrize("name", FOUR)
@settings(max_examples=examples(50))
@given(data=st.data())
def test_a_streamed_reply_survives_its_dialect(name: str, data: st.DataObject) -> None:
    """Events encoded, cut at a random size and decoded aggregate to the same reply."""
    reply = data.draw(CARRIED[name])
    stream = encode(name, events_of(reply))
    size = data.draw(st.integers(1, 40))
    same(reply, aggregate(decode(support.codec(name), stream, size)))
    watch = support.codec(name).watch()
    watch.feed(stream)
    assert watch.ended
    assert watch.usage is not None
    assert reply.usage is not None
    assert (watch.usage.prompt, watch.usage.completion) == (
        reply.usage.prompt,
        reply.usage.completion,
    )


@settings(max_examples=examples(20))
@given(reply=message_replies(), crlf=st.booleans())
def test_every_cut_of_a_stream_decodes_alike(reply: ModelReply, crlf: bool) -> None:
    """Two reads, cut at each byte in turn, and CRLF, give the same events."""
    stream = encode("anthropic_messages", events_of(reply))
    expected = decode(anthropic_messages, stream)
    if crlf:
        stream = stream.replace(b"\n", b"\r\n")
    for cut in range(0, len(stream), 1 + len(stream) // 200):
        decoder = anthropic_messages.StreamDecoder()
        events = decoder.feed(stream[:cut]) + decoder.feed(stream[cut:]) + decoder.close()
        assert repr(events) == repr(expected)


@pytest.mark.parametrize("backend", FOUR)
@pytest.mark.parametrize("client", FOUR)
@settings(max_examples=examples(25))
@given(data=st.data())
def test_any_answer_reaches_any_client(client: str, backend: str, data: st.DataObject) -> None:
    """Whatever a backend may say is a well-formed reply and stream in the client's dialect."""
    reply = data.draw(CARRIED[backend])
    target = support.codec(client)
    request = target.request_to_canonical(body(PLAIN[client], stream=True))
    shown = target.reply_to_canonical(target.reply_from_canonical(reply, request))
    translator = StreamTranslator(support.codec(backend), target, request, created=1)
    sent = translator.feed(encode(backend, events_of(reply))) + translator.close()
    assert translator.error is None
    streamed = aggregate(decode(target, sent))
    assert sorted(said(streamed)) == sorted(said(shown)) == sorted(said(reply))


def said(reply: ModelReply) -> str:
    """All words of the first choice, refusals too."""
    blocks = reply.choices[0].blocks
    plain = "".join(b.text for b in blocks if isinstance(b, TextBlock))
    return plain + "".join(b.text for b in blocks if isinstance(b, RefusalBlock))


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=8),
    lambda v: st.lists(v, max_size=4) | st.dictionaries(st.text(max_size=8), v, max_size=4),
    max_leaves=12,
)
HEADS = {
    "chat": (openai_chat.decode_request, PLAIN["openai_chat"]),
    "completions": (openai_completions.decode_request, PLAIN["openai_completions"]),
    "messages": (anthropic_messages.decode_request, PLAIN["anthropic_messages"]),
    "count": (anthropic_messages.decode_count_request, PLAIN["anthropic_messages"]),
    "responses": (openai_responses.decode_request, PLAIN["openai_responses"]),
    "embeddings": (openai_embeddings.decode_request, {"model": "m", "input": "x"}),
    "complete": (
        anthropic_complete.decode_request,
        {"model": "m", "prompt": "\n\nHuman: x\n\nAssistant:", "max_tokens_to_sample": 5},
    ),
}


@pytest.mark.parametrize("head", HEADS)
@given(data=st.data())
def test_a_bad_request_is_only_ever_refused(head: str, data: st.DataObject) -> None:
    """Bytes, JSON of any shape and single wrong fields raise ``InvalidRequest`` or nothing."""
    decode_request, good = HEADS[head]
    field = data.draw(st.sampled_from(sorted(good)))
    wrong = data.draw(json_values)
    whole = data.draw(json_values)
    raw = data.draw(st.binary(max_size=60))
    for sent in (json.dumps({**good, field: wrong}).encode(), json.dumps(whole).encode(), raw):
        try:
            found = decode_request(sent)
        except InvalidRequest:
            continue
        else:
            assert isinstance(found.model, str)
            assert found.stream in (None, True, False)
            assert found.affinity is None or isinstance(found.affinity, str)
            assert found.usage_wanted in (True, False)
            assert found.has_routing_fields() in (True, False)


@st.composite
def spoilt(draw: st.DrawFn, good: Any) -> Any:
    """A good value with one part, anywhere inside, replaced."""
    if draw(st.integers(0, 3)) == 0:
        return draw(json_values)
    if isinstance(good, dict) and good:
        key = draw(st.sampled_from(sorted(good)))
        return {**good, key: draw(spoilt(good[key]))}
    if isinstance(good, list) and good:
        i = draw(st.integers(0, len(good) - 1))
        return [*good[:i], draw(spoilt(good[i])), *good[i + 1 :]]
    return draw(json_values)


@pytest.mark.parametrize("name", sorted(TOOLS))
@settings(max_examples=examples(50))
@given(data=st.data())
def test_translating_a_bad_request_is_only_ever_refused(name: str, data: st.DataObject) -> None:
    """A request spoilt anywhere inside translates or raises ``InvalidRequest``, nothing else."""
    sent = json.dumps(data.draw(spoilt(TOOLS[name]))).encode()
    try:
        request = support.codec(name).request_to_canonical(sent)
    except InvalidRequest:
        return
    for target in FOUR:
        try:
            support.codec(target).request_from_canonical(request)
        except InvalidRequest as e:
            assert e.param  # noqa: PT017 - both outcomes are good


@pytest.mark.parametrize("name", FOUR)
@settings(max_examples=examples(50))
@given(data=st.data())
def test_a_bad_stream_is_only_ever_a_failure(name: str, data: st.DataObject) -> None:
    """Upstream events spoilt anywhere inside give events or ``BackendFailure``, nothing else."""
    reply = data.draw(CARRIED[name])
    codec = support.codec(name)
    lines = encode(name, events_of(reply)).split(b"\n")
    at = [i for i, line in enumerate(lines) if line.startswith(b"data: {")]
    i = data.draw(st.sampled_from(at))
    lines[i] = b"data: " + json.dumps(data.draw(spoilt(json.loads(lines[i][6:])))).encode()
    request = codec.request_to_canonical(body(PLAIN[name], stream=True))
    for target in FOUR:
        translator = StreamTranslator(codec, support.codec(target), request, created=1)
        translator.feed(b"\n".join(lines))
        translator.close()
        assert translator.ended


@pytest.mark.parametrize("name", FOUR)
@settings(max_examples=examples(50))
@given(data=st.data())
def test_a_bad_reply_is_only_ever_a_failure(name: str, data: st.DataObject) -> None:
    """An upstream's reply spoilt anywhere inside translates or raises ``BackendFailure``."""
    codec = support.codec(name)
    good = json.loads(codec.reply_from_canonical(data.draw(CARRIED[name])))
    try:
        reply = codec.reply_to_canonical(json.dumps(data.draw(spoilt(good))).encode())
        for target in FOUR:
            support.codec(target).reply_from_canonical(reply)
    except BackendFailure as e:
        assert e.reason  # noqa: PT017 - both outcomes are good
