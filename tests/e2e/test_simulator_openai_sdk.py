"""The unmodified OpenAI SDK against the simulator, and through a gateway in front of it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from openai import OpenAI
from openai.types.chat import ChatCompletionMessageParam, ChatCompletionToolParam

from tests.support.gateway import Gateway
from tests.support.json_schema import Validator
from tests.support.simulated import front_of

MODEL = "gpt-4o"
WEATHER: ChatCompletionToolParam = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Asks a weather station.",
        "parameters": {
            "type": "object",
            "properties": {
                "city": {"type": "string"},
                "unit": {"type": "string", "enum": ["celsius", "fahrenheit"]},
            },
            "required": ["city", "unit"],
            "additionalProperties": False,
        },
    },
}
RECIPE: dict[str, Any] = {
    "type": "object",
    "properties": {
        "title": {"type": "string", "minLength": 3},
        "minutes": {"type": "integer", "minimum": 5, "maximum": 90},
        "steps": {"type": "array", "items": {"$ref": "#/$defs/step"}, "minItems": 2},
        "vegan": {"type": ["boolean", "null"]},
    },
    "required": ["title", "minutes", "steps", "vegan"],
    "additionalProperties": False,
    "$defs": {
        "step": {
            "type": "object",
            "properties": {"do": {"type": "string"}, "grams": {"type": "number", "minimum": 0}},
            "required": ["do"],
            "additionalProperties": False,
        }
    },
}


@pytest.fixture(scope="module")
def front(simulator: Gateway, short_tmp: Path) -> Iterator[Gateway]:
    """A gateway in front of the simulator."""
    with front_of(simulator, short_tmp / "front-openai") as gateway:
        yield gateway


@pytest.fixture(params=["direct", "gateway"])
def url(request: pytest.FixtureRequest, simulator: Gateway, front: Gateway) -> str:
    """The simulator's address, or that of the gateway in front of it."""
    return simulator.url if request.param == "direct" else front.url


@pytest.fixture
def client(url: str) -> Iterator[OpenAI]:
    """A client that does not retry."""
    with OpenAI(base_url=f"{url}/v1", api_key="unused", max_retries=0, timeout=20) as made:
        yield made


def user(text: str) -> list[ChatCompletionMessageParam]:
    """Make a one-message conversation."""
    return [{"role": "user", "content": text}]


def test_chat_has_every_field_of_the_real_answer(client: OpenAI) -> None:
    """Ids, fingerprint, tier and usage with its details; the text is about the prompt."""
    reply = client.chat.completions.create(model=MODEL, messages=user("How do volcanoes erupt?"))
    choice = reply.choices[0]
    assert reply.id.startswith("chatcmpl-")
    assert reply.model == MODEL
    assert reply.service_tier == "default"
    assert (reply.system_fingerprint or "").startswith("fp_")
    assert choice.finish_reason == "stop"
    assert "volcanoes" in (choice.message.content or "").lower()
    usage = reply.usage
    assert usage is not None
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens
    assert usage.prompt_tokens_details is not None
    assert usage.prompt_tokens_details.cached_tokens == 0
    assert usage.completion_tokens_details is not None
    assert usage.completion_tokens_details.reasoning_tokens == 0


def test_stream_says_what_the_whole_reply_says(client: OpenAI) -> None:
    """One event per token, usage when it is asked for, the same words."""
    asked: dict[str, Any] = {"model": MODEL, "messages": user("Name three rivers"), "seed": 5}
    whole = client.chat.completions.create(**asked)
    chunks = list(
        client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True})
    )
    said = [c.choices[0].delta.content for c in chunks if c.choices and c.choices[0].delta.content]
    assert "".join(said) == whole.choices[0].message.content
    assert whole.usage is not None
    assert len(said) == whole.usage.completion_tokens
    assert chunks[-1].usage == whole.usage
    assert [c.usage for c in chunks[:-1]] == [None] * (len(chunks) - 1)


def test_stream_without_options_shows_no_usage(client: OpenAI) -> None:
    """Whoever asked for it in between took it out again."""
    stream = client.chat.completions.create(model=MODEL, messages=user("hi"), stream=True)
    chunks = list(stream)
    assert all(chunk.choices for chunk in chunks)
    assert chunks[-1].choices[0].finish_reason == "stop"


def test_limit_and_stop_end_an_answer(client: OpenAI) -> None:
    """``max_tokens`` is exact and says ``length``; a stop sequence is not part of the text."""
    asked: dict[str, Any] = {"model": MODEL, "messages": user("Tell me about old bridges")}
    short = client.chat.completions.create(**asked, max_completion_tokens=3)
    assert short.choices[0].finish_reason == "length"
    assert short.usage is not None
    assert short.usage.completion_tokens == 3
    text = client.chat.completions.create(**asked, seed=1).choices[0].message.content or ""
    mark = text.split()[3]
    stopped = client.chat.completions.create(**asked, seed=1, stop=[mark])
    assert stopped.choices[0].finish_reason == "stop"
    assert mark not in (stopped.choices[0].message.content or "")


def test_choices_differ_and_are_counted_together(client: OpenAI) -> None:
    """``n`` answers, each its own; streamed, they take turns."""
    asked: dict[str, Any] = {"model": MODEL, "messages": user("Pick a colour"), "n": 3}
    reply = client.chat.completions.create(**asked)
    texts = [choice.message.content for choice in reply.choices]
    assert len(set(texts)) == 3
    streamed = ["", "", ""]
    order = []
    for chunk in client.chat.completions.create(**asked, stream=True):
        for choice in chunk.choices:
            order.append(choice.index)
            streamed[choice.index] += choice.delta.content or ""
    assert streamed == texts
    assert order != sorted(order)


def test_logprobs_cover_every_token(client: OpenAI) -> None:
    """One entry per token, as many alternatives as asked, the chosen one first."""
    reply = client.chat.completions.create(
        model=MODEL, messages=user("hi"), logprobs=True, top_logprobs=3
    )
    logprobs = reply.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.content is not None
    assert "".join(entry.token for entry in logprobs.content) == reply.choices[0].message.content
    for entry in logprobs.content:
        assert entry.top_logprobs[0].token == entry.token
        assert len(entry.top_logprobs) == 3
        assert entry.logprob < 0


def test_tools_make_a_round_trip(client: OpenAI) -> None:
    """A call with fitting arguments, and after its result an answer in words."""
    asked = user("What is the weather in Oslo?")
    first = client.chat.completions.create(model=MODEL, messages=asked, tools=[WEATHER])
    assert first.choices[0].finish_reason == "tool_calls"
    (call,) = first.choices[0].message.tool_calls or []
    assert call.type == "function"
    assert call.id.startswith("call_")
    assert call.function.name == "get_weather"
    schema: Any = WEATHER["function"]["parameters"]
    assert not Validator(schema).errors(json.loads(call.function.arguments))
    again: list[ChatCompletionMessageParam] = [
        *asked,
        {"role": "assistant", "tool_calls": [{"id": call.id, "type": "function", "function": {
            "name": call.function.name, "arguments": call.function.arguments}}]},
        {"role": "tool", "tool_call_id": call.id, "content": "4 °C, rain"},
    ]  # fmt: skip
    second = client.chat.completions.create(model=MODEL, messages=again, tools=[WEATHER])
    assert second.choices[0].finish_reason == "stop"
    assert second.choices[0].message.content


def test_streamed_tool_call_is_put_together_by_the_sdk(client: OpenAI) -> None:
    """Arguments come in pieces that join to the JSON of the whole reply."""
    asked: dict[str, Any] = {
        "model": MODEL, "messages": user("hello"), "tools": [WEATHER], "tool_choice": "required",
    }  # fmt: skip
    whole = client.chat.completions.create(**asked)
    (call,) = whole.choices[0].message.tool_calls or []
    assert call.type == "function"
    with client.chat.completions.stream(**asked) as stream:
        final = stream.get_final_completion()
    (streamed,) = final.choices[0].message.tool_calls or []
    assert streamed.function.arguments == call.function.arguments


def test_structured_output_fits_the_schema(client: OpenAI) -> None:
    """Whatever the schema asks for, references included."""
    reply = client.chat.completions.create(
        model=MODEL,
        messages=user("A recipe, please"),
        response_format={
            "type": "json_schema",
            "json_schema": {"name": "recipe", "schema": RECIPE, "strict": True},
        },
    )
    value = json.loads(reply.choices[0].message.content or "")
    schema = {**RECIPE, "properties": {**RECIPE["properties"], "vegan": {}}}
    assert not Validator(schema).errors(value)
    assert value["vegan"] in (True, False, None)


def test_completions_have_their_own_objects(client: OpenAI) -> None:
    """``text_completion`` with text, whole and streamed."""
    asked: dict[str, Any] = {"model": "gpt-3.5-turbo-instruct", "prompt": "Once upon a time"}
    whole = client.completions.create(**asked, logprobs=2)
    assert whole.object == "text_completion"
    assert whole.id.startswith("cmpl-")
    assert whole.choices[0].logprobs is not None
    assert "".join(whole.choices[0].logprobs.tokens or ()) == whole.choices[0].text
    pieces = [
        c.choices[0].text for c in client.completions.create(**asked, logprobs=2, stream=True)
    ]
    assert "".join(pieces) == whole.choices[0].text


def test_embeddings_are_unit_vectors_in_either_encoding(client: OpenAI) -> None:
    """The SDK asks for base64 by itself; floats say the same; ``dimensions`` shortens."""
    asked: dict[str, Any] = {"model": "text-embedding-3-small", "input": ["a cat", "a dog"]}
    packed = client.embeddings.create(**asked)
    plain = client.embeddings.create(**asked, encoding_format="float")
    assert [len(entry.embedding) for entry in packed.data] == [1536, 1536]
    for one, other in zip(packed.data, plain.data, strict=True):
        assert one.embedding == pytest.approx(other.embedding, abs=1e-7)
        assert sum(x * x for x in one.embedding) == pytest.approx(1.0, abs=1e-5)
    assert packed.data[0].embedding != packed.data[1].embedding
    short = client.embeddings.create(**asked, dimensions=64).data[0].embedding
    scale = short[0] / packed.data[0].embedding[0]
    assert short == pytest.approx([scale * x for x in packed.data[0].embedding[:64]], abs=1e-6)


def test_responses_are_whole_objects(client: OpenAI) -> None:
    """Output text, settings repeated, usage with details; streamed with numbered events."""
    reply = client.responses.create(model=MODEL, input="Say something about tides", store=False)
    assert reply.id.startswith("resp_")
    assert reply.status == "completed"
    assert reply.output_text
    assert reply.usage is not None
    assert reply.usage.output_tokens_details.reasoning_tokens == 0
    stream = client.responses.create(
        model=MODEL, input="Say something about tides", store=False, stream=True
    )
    events = list(stream)
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert events[0].type == "response.created"
    last = events[-1]
    assert last.type == "response.completed"
    assert last.response.output_text == reply.output_text


def test_reasoning_model_thinks_and_counts_it(client: OpenAI) -> None:
    """Chat only counts the thoughts; a response shows their summary when it is asked for."""
    chat = client.chat.completions.create(
        model="o3", messages=user("Why?"), reasoning_effort="high"
    )
    assert chat.usage is not None
    assert chat.usage.completion_tokens_details is not None
    assert (chat.usage.completion_tokens_details.reasoning_tokens or 0) > 100
    reply = client.responses.create(
        model="o3", input="Why?", reasoning={"effort": "low", "summary": "auto"}, store=False
    )
    assert [item.type for item in reply.output] == ["reasoning", "message"]
    item = reply.output[0]
    assert item.type == "reasoning"
    assert item.summary[0].text


def test_responses_call_functions(client: OpenAI) -> None:
    """A function call item with fitting arguments."""
    schema: Any = WEATHER["function"]["parameters"]
    reply = client.responses.create(
        model=MODEL,
        input="weather?",
        store=False,
        tools=[{"type": "function", "name": "get_weather", "parameters": schema, "strict": True}],
    )
    (item,) = reply.output
    assert item.type == "function_call"
    assert not Validator(schema).errors(json.loads(item.arguments))


def test_headers_are_the_providers(client: OpenAI) -> None:
    """Rate limits, processing time, version and a request id reach the SDK."""
    raw = client.chat.completions.with_raw_response.create(model=MODEL, messages=user("hi"))
    assert raw.headers["openai-version"] == "2020-10-01"
    assert int(raw.headers["openai-processing-ms"]) >= 1
    assert raw.headers["x-ratelimit-limit-requests"] == "10000"
    assert raw.headers["x-ratelimit-remaining-requests"] == "9999"
    assert raw.request_id


ERRORS = [
    (400, openai.BadRequestError),
    (401, openai.AuthenticationError),
    (403, openai.PermissionDeniedError),
    (404, openai.NotFoundError),
    (409, openai.ConflictError),
    (422, openai.UnprocessableEntityError),
    (429, openai.RateLimitError),
    (500, openai.InternalServerError),
    (503, openai.InternalServerError),
]


@pytest.mark.parametrize(("status", "kind"), ERRORS)
def test_every_ordered_status_is_the_sdks_error(
    simulator: Gateway, status: int, kind: type[openai.APIStatusError]
) -> None:
    """The SDK raises its class for it, with the provider's type and code."""
    with (
        OpenAI(base_url=f"{simulator.url}/v1", api_key="k", max_retries=0) as client,
        pytest.raises(kind) as caught,
    ):
        client.chat.completions.create(
            model=MODEL, messages=user("hi"), extra_headers={"X-Sim-Error": str(status)}
        )
    assert caught.value.status_code == status
    assert caught.value.type
    assert caught.value.request_id


def test_rate_limited_answer_says_when_to_come_back(client: OpenAI) -> None:
    """Wait and code reach the client, through a gateway too."""
    with pytest.raises(openai.RateLimitError) as caught:
        client.chat.completions.create(
            model=MODEL, messages=user("hi"),
            extra_headers={"X-Sim-Error": "429; retry_after=3"},
        )  # fmt: skip
    assert caught.value.code == "rate_limit_exceeded"
    assert caught.value.response.headers["retry-after"] == "3"
    assert caught.value.response.headers["x-ratelimit-remaining-requests"] == "0"


def test_empty_account_is_not_tried_again(simulator: Gateway) -> None:
    """The SDK is told so, and stops at the first answer."""
    with (
        OpenAI(base_url=f"{simulator.url}/v1", api_key="k", max_retries=5, timeout=20) as client,
        pytest.raises(openai.RateLimitError) as caught,
    ):
        client.chat.completions.create(
            model=MODEL, messages=user("hi"), extra_headers={"X-Sim-Error": "insufficient_quota"}
        )
    assert caught.value.code == "insufficient_quota"
    assert caught.value.response.headers["x-should-retry"] == "false"
    assert caught.value.request.headers["x-stainless-retry-count"] == "0"


def test_sdk_retries_until_it_is_answered(url: str) -> None:
    """Two failures, then the answer, whichever worker each try meets."""
    with OpenAI(base_url=f"{url}/v1", api_key="k", max_retries=2, timeout=20) as client:
        raw = client.chat.completions.with_raw_response.create(
            model=MODEL, messages=user("hi"),
            extra_headers={"X-Sim-Error": "429; first=2; retry_after=0.01"},
        )  # fmt: skip
    assert raw.retries_taken == 2
    assert raw.parse().choices[0].message.content


def test_bad_requests_name_the_field(client: OpenAI) -> None:
    """Out of range, unknown tool, wrong endpoint: a 400 or 404 that says what."""
    bad: list[tuple[dict[str, Any], str | None]] = [
        ({"temperature": 3}, "temperature"),
        ({"tools": [WEATHER], "tool_choice": {"type": "function", "function": {"name": "x"}}},
         "tool_choice"),
        ({"model": "text-embedding-3-small"}, "model"),
    ]  # fmt: skip
    for more, param in bad:
        with pytest.raises(openai.APIStatusError) as caught:
            client.chat.completions.create(**{"model": MODEL, "messages": user("hi")} | more)  # type: ignore[call-overload]
        assert caught.value.status_code in (400, 404)
        assert caught.value.param == param


def test_fields_that_do_not_agree_are_refused(client: OpenAI) -> None:
    """As OpenAI refuses them, with its code, which may be none; through a gateway all the same."""
    legacy = {"model": "gpt-3.5-turbo-instruct", "prompt": "hi", "best_of": 1, "n": 2}
    schema: dict[str, Any] = {"type": "json_schema", "json_schema": {"schema": RECIPE}}
    bad: list[tuple[dict[str, Any], str, str | None]] = [
        ({"top_logprobs": 2}, "top_logprobs", None),
        ({"stream_options": {"include_usage": True}}, "stream_options", None),
        ({"response_format": schema}, "response_format.json_schema.name",
         "missing_required_parameter"),
        ({"reasoning_effort": "extreme"}, "reasoning_effort", "invalid_value"),
        ({"presence_penalty": 2.5}, "presence_penalty", "decimal_above_max_value"),
        ({"parallel_tool_calls": False}, "parallel_tool_calls", None),
        ({"messages": [*user("hi"), {"role": "tool", "tool_call_id": "c", "content": "x"}]},
         "messages.[1].role", None),
        (legacy, "best_of", None),
    ]  # fmt: skip
    for more, param, code in bad:
        create: Any = client.chat.completions.create
        asked = {"model": MODEL, "messages": user("hi")} | more
        if "prompt" in more:
            create, asked = client.completions.create, more
        with pytest.raises(openai.BadRequestError) as caught:
            create(**asked)
        told = caught.value
        assert (told.param, told.code, told.type) == (param, code, "invalid_request_error")


def test_unknown_model_does_not_exist(client: OpenAI) -> None:
    """404 ``model_not_found``, also from behind a gateway that serves any name."""
    with pytest.raises(openai.NotFoundError) as caught:
        client.chat.completions.create(model="nope-1", messages=user("hi"))
    assert caught.value.code == "model_not_found"


def test_models_are_the_catalogue(client: OpenAI) -> None:
    """Names a client may use, one by one too."""
    listed = {model.id for model in client.models.list()}
    assert {"gpt-4o", "o3", "text-embedding-3-small"} <= listed
    assert client.models.retrieve("gpt-4o").id == "gpt-4o"


def read_until_cut(url: str, kind: type[Exception]) -> list[str]:
    """The words of a stream that is cut after three tokens, which the SDK must raise."""
    seen: list[str] = []
    with OpenAI(base_url=f"{url}/v1", api_key="k", max_retries=0, timeout=20) as client:
        stream = client.chat.completions.create(
            model=MODEL, messages=user("hi"), stream=True,
            extra_headers={"X-Sim-Fault": "disconnect_after=3"},
        )  # fmt: skip
        words = (chunk.choices[0].delta.content or "" for chunk in stream)
        with pytest.raises(kind):
            seen.extend(word for word in words if word)
    return seen


def test_cut_stream_is_a_connection_error(simulator: Gateway) -> None:
    """Exactly three tokens arrive, then the connection is gone."""
    assert len(read_until_cut(simulator.url, openai.APIConnectionError)) == 3


def test_cut_stream_ends_in_the_gateways_error_event(front: Gateway) -> None:
    """What the upstream cuts off, the gateway tells in the stream."""
    assert len(read_until_cut(front.url, openai.APIError)) == 3


def test_error_event_in_mid_stream_is_raised(client: OpenAI) -> None:
    """As a real provider's in-band error is."""
    stream = client.chat.completions.create(
        model=MODEL, messages=user("hi"), stream=True,
        extra_headers={"X-Sim-Fault": "error_after=2"},
    )  # fmt: skip
    with pytest.raises(openai.APIError):
        list(stream)
