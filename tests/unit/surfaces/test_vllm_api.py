"""vLLM's own routes: what they refuse, by the name of the field."""

from __future__ import annotations

from typing import Any

import pytest

from tests.support.fake_gateway import Surface
from tpo_mp.config.load import build
from tpo_mp.surfaces.vllm_api import FEATURE


def surface(**options: Any) -> Surface:
    """The surface of a simulator with such options."""
    made = Surface(FEATURE)
    made.gateway.config = build({"simulator": options}, {"simulate": True}, {}, None)
    return made


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/tokenize", {"prompt": 7}, "prompt"),
        ("/tokenize", {}, "prompt"),
        ("/tokenize", {"messages": [{"role": "pilot", "content": "x"}]}, "messages[0].role"),
        ("/tokenize", {"prompt": "x", "return_token_strs": "yes"}, "return_token_strs"),
        ("/tokenize", {"messages": [], "chat_template": "{{ x }}"}, "chat_template"),
        ("/tokenize", {"prompt": "x", "model": "nobody"}, "model"),
        ("/detokenize", {"tokens": "abc"}, "tokens"),
        ("/detokenize", {"tokens": [1, 2.5]}, "tokens[1]"),
        ("/detokenize", {"tokens": [True]}, "tokens[0]"),
        ("/detokenize", {"tokens": [0, -1]}, "tokens[1]"),
        ("/detokenize", {"tokens": [0] * 400 + [1 << 54]}, "tokens[400]"),
    ],
)
def test_what_is_wrong_is_named(path: str, body: dict[str, Any], param: str) -> None:
    """And is the caller's fault."""
    refused = surface().refusal("POST", path, body)
    assert refused.status == (404 if param == "model" else 400)
    assert refused.param == param


def test_the_longest_context_is_the_engine_s_or_the_model_s() -> None:
    """The first model is meant when none is named."""
    made = surface(
        models=["llama-8b", "gpt-4o"], latency={"llama-*": "mine"},
        engines={"mine": {"preset": "nim-8b", "max_model_len": 777}},
    )  # fmt: skip
    told = made.ask("POST", "/tokenize", {"prompt": "a b"}).json()
    assert (told["max_model_len"], told["count"], told["token_strs"]) == (777, 2, None)
    other = made.ask("POST", "/tokenize", {"prompt": "a b", "model": "gpt-4o"}).json()
    assert (other["max_model_len"], other["tokens"]) == (128_000, told["tokens"])
