"""Legacy prompts: words, numbers, several, repeated."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.support.fake_codec import finished
from tpo_mp.dialects import support
from tpo_mp.errors import InvalidRequest
from tpo_mp.simulator.answers import Speech
from tpo_mp.simulator.provider import SimulatedProvider
from tpo_mp.types import Dialect

CODEC = support.codec("openai_completions")


def complete(prompt: Any, **more: Any) -> dict[str, Any]:
    """A whole answer to a prompt."""
    body = {"model": "gpt-3.5-turbo-instruct", "prompt": prompt} | more
    provider = SimulatedProvider(Speech(strategy="fixed", text=" so it is"))
    steps = provider.generate(CODEC, Dialect.OPENAI_COMPLETIONS, json.dumps(body).encode(), "")
    answer: dict[str, Any] = json.loads(finished(steps).body())
    return answer


def test_each_prompt_has_its_choices() -> None:
    """In order, counted together."""
    told = complete(["a", "b"], n=2)
    assert [choice["index"] for choice in told["choices"]] == [0, 1, 2, 3]
    assert told["usage"]["prompt_tokens"] == 2
    assert told["usage"]["completion_tokens"] == 12


def test_echo_repeats_the_prompt() -> None:
    """Each before its own answer."""
    assert [c["text"] for c in complete(["a", "b"], echo=True)["choices"]] == [
        "a so it is", "b so it is",
    ]  # fmt: skip


@pytest.mark.parametrize(("prompt", "count"), [([1, 2, 3], 1), ([[1], [2, 3]], 2), (["x"], 1)])
def test_token_numbers_are_prompts(prompt: Any, count: int) -> None:
    """One list is one prompt, a list of lists are several."""
    told = complete(prompt)
    assert len(told["choices"]) == count
    assert told["usage"]["prompt_tokens"] >= count


def test_sixteen_tokens_unless_asked() -> None:
    """The dialect's own default."""
    body = {"model": "gpt-3.5-turbo-instruct", "prompt": "x"}
    provider = SimulatedProvider(Speech(least_tokens=50))
    steps = provider.generate(CODEC, Dialect.OPENAI_COMPLETIONS, json.dumps(body).encode(), "")
    told = json.loads(finished(steps).body())
    assert told["usage"]["completion_tokens"] == 16
    assert told["choices"][0]["finish_reason"] == "length"


@pytest.mark.parametrize("prompt", [[], ["x"] * 129, [["x"]], [{"a": 1}], None])
def test_other_prompts_are_refused(prompt: Any) -> None:
    """By name."""
    with pytest.raises(InvalidRequest) as refused:
        complete(prompt)
    assert refused.value.param == "prompt"


def test_choices_are_bounded_in_all() -> None:
    """``n`` times prompts."""
    with pytest.raises(InvalidRequest, match="128"):
        complete(["x"] * 64, n=3)
