"""What is well formed and is refused all the same, as the provider refuses it."""

from __future__ import annotations

from typing import Any, Final

import orjson
import pytest

from tests.support.fake_codec import finished
from tpo_mp.errors import Rejected
from tpo_mp.pipeline.codecs import codec
from tpo_mp.simulator.answers import Speech
from tpo_mp.simulator.provider import SimulatedProvider
from tpo_mp.types import Dialect

CHAT, LEGACY, MESSAGES, GEMINI = (
    Dialect.OPENAI_CHAT, Dialect.OPENAI_COMPLETIONS, Dialect.ANTHROPIC_MESSAGES, Dialect.GEMINI
)  # fmt: skip
BODIES: Final[dict[Dialect, dict[str, Any]]] = {
    CHAT: {"model": "gpt-4o", "messages": [{"role": "user", "content": "rivers"}]},
    LEGACY: {"model": "gpt-3.5-turbo-instruct", "prompt": "rivers"},
    MESSAGES: {"model": "claude-sonnet-4-6", "max_tokens": 2048,
               "messages": [{"role": "user", "content": "rivers"}]},
    GEMINI: {"model": "gemini-2.5-pro", "contents": [{"parts": [{"text": "rivers"}]}]},
}  # fmt: skip
TOOL: Final = {"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}
CALL: Final = {"id": "c1", "type": "function", "function": {"name": "look", "arguments": "{}"}}
OWN_TOOL: Final = {"name": "look", "input_schema": {"type": "object"}}
USER: Final = {"role": "user", "content": "rivers"}
RESULT: Final = {"role": "tool", "tool_call_id": "c1", "content": "wet"}
OWN_RESULT: Final = {"role": "user", "content": [
    {"type": "text", "text": "here"},
    {"type": "tool_result", "tool_use_id": "t1", "content": "wet"}]}  # fmt: skip
OWN_CALL: Final = {"role": "assistant", "content": [
    {"type": "tool_use", "id": "t1", "name": "look", "input": {}}]}  # fmt: skip
SCHEMA: Final = {"schema": {"type": "object", "properties": {}}}


def named(name: str) -> dict[str, Any]:
    """Choose a function."""
    return {"type": "function", "function": {"name": name}}


def thinking(budget: int) -> dict[str, Any]:
    """Think so much."""
    return {"type": "enabled", "budget_tokens": budget}


def ask(dialect: Dialect, more: dict[str, Any]) -> dict[str, Any]:
    """Ask a simulated provider; its whole answer."""
    made = SimulatedProvider(Speech(seed=0))
    body = orjson.dumps(BODIES[dialect] | more)
    answer: dict[str, Any] = orjson.loads(
        finished(made.generate(codec(dialect), dialect, body, "")).body()
    )
    return answer


BAD: Final[list[tuple[Dialect, dict[str, Any], str, str | None]]] = [
    (CHAT, {"stop": list("abcde")}, "stop", "array_above_max_length"),
    (CHAT, {"logprobs": True, "top_logprobs": 21}, "top_logprobs", "integer_above_max_value"),
    (CHAT, {"top_logprobs": 2}, "top_logprobs", None),
    (CHAT, {"top_logprobs": 0, "logprobs": False}, "top_logprobs", None),
    (CHAT, {"logit_bias": {"50256": 101}}, "logit_bias", "invalid_value"),
    (CHAT, {"logit_bias": {"50256": "much"}}, "logit_bias", "invalid_value"),
    (CHAT, {"frequency_penalty": 2.1}, "frequency_penalty", "decimal_above_max_value"),
    (CHAT, {"presence_penalty": -3}, "presence_penalty", "decimal_below_min_value"),
    (CHAT, {"stream_options": {"include_usage": True}}, "stream_options", None),
    (CHAT, {"stream_options": {}, "stream": False}, "stream_options", None),
    (CHAT, {"response_format": {"type": "json_schema", "json_schema": SCHEMA}},
     "response_format.json_schema.name", "missing_required_parameter"),
    (CHAT, {"reasoning_effort": "extreme"}, "reasoning_effort", "invalid_value"),
    (CHAT, {"tool_choice": "auto"}, "tool_choice", None),
    (CHAT, {"tool_choice": "required", "tools": []}, "tool_choice", None),
    (CHAT, {"parallel_tool_calls": False}, "parallel_tool_calls", None),
    (CHAT, {"tools": [TOOL], "tool_choice": named("seek")}, "tool_choice", None),
    (CHAT, {"messages": [USER, RESULT]}, "messages.[1].role", None),
    (CHAT, {"messages": [RESULT]}, "messages.[0].role", None),
    (LEGACY, {"logprobs": 6}, "logprobs", "integer_above_max_value"),
    (LEGACY, {"best_of": 1, "n": 2}, "best_of", None),
    (LEGACY, {"best_of": 21}, "best_of", "integer_above_max_value"),
    (LEGACY, {"best_of": 2, "stream": True}, "best_of", None),
    (LEGACY, {"stream_options": {"include_usage": True}}, "stream_options", None),
    (MESSAGES, {"thinking": thinking(1024), "temperature": 0.5}, "temperature", "invalid_request"),
    (MESSAGES, {"thinking": thinking(1024), "top_k": 5}, "top_k", "invalid_request"),
    (MESSAGES, {"messages": [USER, OWN_RESULT]}, "messages[1].content[1].tool_use_id",
     "invalid_request"),
    (GEMINI, {"generationConfig": {"topK": -1}}, "generationConfig.topK", "invalid_request"),
]  # fmt: skip


@pytest.mark.parametrize(("dialect", "fields", "param", "code"), BAD)
def test_fields_that_do_not_agree_are_refused_by_name(
    dialect: Dialect, fields: dict[str, Any], param: str, code: str | None
) -> None:
    """With OpenAI's code, which may be none."""
    with pytest.raises(Rejected) as refused:
        ask(dialect, fields)
    error = refused.value
    assert (error.status, error.param) == (400, param)
    if dialect in (CHAT, LEGACY):
        told = orjson.loads(codec(dialect).error_body(error))["error"]
        assert (told["param"], told["code"]) == (param, code)
        assert told["type"] == "invalid_request_error"
        assert told["message"] == error.message
        assert param.rpartition(".")[2] in error.message or code is None


@pytest.mark.parametrize(
    ("dialect", "fields"), [(d, f) for d, f, *_ in BAD if d in (CHAT, LEGACY, MESSAGES)]
)
def test_a_model_of_another_name_takes_what_its_servers_take(
    dialect: Dialect, fields: dict[str, Any]
) -> None:
    """Only a tool that is not there can be asked of nobody."""
    if "tool_choice" in fields:
        return
    assert ask(dialect, {"model": "llama"} | fields)


@pytest.mark.parametrize(
    ("dialect", "fields"),
    [
        (CHAT, {"stop": list("abcd"), "logprobs": True, "top_logprobs": 20,
                "logit_bias": {"1": -100}}),
        (CHAT, {"top_logprobs": None, "stream_options": None, "parallel_tool_calls": None}),
        (CHAT, {"stream": True, "stream_options": {"include_usage": True}}),
        (CHAT, {"messages": [{"role": "user", "content": '"stream_options", "top_logprobs"'}]}),
        (CHAT, {"frequency_penalty": 2, "presence_penalty": -2, "tool_choice": "none"}),
        (CHAT, {"response_format": {"type": "json_schema",
                                    "json_schema": SCHEMA | {"name": "any"}}}),
        (CHAT, {"reasoning_effort": "minimal", "tools": [TOOL], "tool_choice": named("look")}),
        (CHAT, {"tools": [TOOL], "parallel_tool_calls": False, "messages": [
            USER, {"role": "assistant", "tool_calls": [CALL]}, RESULT]}),
        (LEGACY, {"best_of": 2, "n": 2, "stream": True}),
        (LEGACY, {"best_of": 3, "n": 2, "logprobs": 5}),
        (MESSAGES, {"thinking": thinking(2047), "temperature": 1}),
        (MESSAGES, {"tools": [OWN_TOOL], "messages": [USER, OWN_CALL, OWN_RESULT]}),
        (MESSAGES, {"tools": [OWN_TOOL], "messages": [OWN_RESULT], "thread": {
            "type": "continue", "previous_message_id": "msg_1"}}),
        (GEMINI, {"generationConfig": {"topK": 40}}),
    ],
)  # fmt: skip
def test_what_is_just_taken_is_taken(dialect: Dialect, fields: dict[str, Any]) -> None:
    """At the edge of each bound."""
    assert ask(dialect, fields)
