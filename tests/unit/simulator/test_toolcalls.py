"""Which tools are called: by demand, by words, never twice in a loop."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.support.fake_codec import asked
from tpo_mp.errors import InvalidRequest
from tpo_mp.simulator.toolcalls import calls_of
from tpo_mp.types import Dialect


def tool(name: str) -> dict[str, Any]:
    """A tool with one argument."""
    schema = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
    return {"type": "function", "function": {"name": name, "parameters": schema}}


TOOLS = [tool("get_weather"), tool("searchFlights"), tool("set_alarm")]


def called(text: str, **more: Any) -> list[str]:
    """Names of the tools that a message brings about."""
    request = asked(text, **({"tools": TOOLS} | more))
    calls = calls_of(request, Dialect.OPENAI_CHAT, b"key")
    assert all(isinstance(json.loads(call.arguments)["n"], int) for call in calls)
    return [call.name for call in calls]


def test_left_to_itself_it_calls_what_the_message_names() -> None:
    """Words of a tool's name, singular or plural; small words do not count."""
    assert called("What is the weather?") == ["get_weather"]
    assert called("any flight to Oslo?") == ["searchFlights"]
    assert called("Weather and alarms, please") == ["get_weather", "set_alarm"]
    assert called("get set") == []
    assert called("hello", tool_choice="auto") == []


def test_one_at_a_time_when_asked() -> None:
    """``parallel_tool_calls`` false."""
    assert called("weather, alarm", parallel_tool_calls=False) == ["get_weather"]


def test_demand_is_met_with_the_meant_tool_or_the_first() -> None:
    """``required``, and by name."""
    assert called("hello", tool_choice="required") == ["get_weather"]
    assert called("an alarm", tool_choice="required") == ["set_alarm"]
    named = {"type": "function", "function": {"name": "set_alarm"}}
    assert called("the weather", tool_choice=named) == ["set_alarm"]


def test_none_is_none() -> None:
    """Whatever the message says."""
    assert called("weather", tool_choice="none") == []
    assert called("weather", tools=[]) == []


def test_result_ends_the_loop() -> None:
    """After a tool's answer it talks."""
    history = [
        {"role": "user", "content": "weather?"},
        {"role": "assistant", "tool_calls": [{
            "id": "c", "type": "function",
            "function": {"name": "get_weather", "arguments": "{}"}}]},
        {"role": "tool", "tool_call_id": "c", "content": "rain"},
    ]  # fmt: skip
    assert called("", messages=history) == []
    assert called("", messages=history, tool_choice="required") == ["get_weather"]


def test_demand_that_cannot_be_met_is_refused() -> None:
    """Naming the field."""
    named = {"type": "function", "function": {"name": "nobody"}}
    with pytest.raises(InvalidRequest) as refused:
        called("x", tool_choice=named)
    assert refused.value.param == "tool_choice"
    with pytest.raises(InvalidRequest):
        called("x", tools=[], tool_choice="required")
