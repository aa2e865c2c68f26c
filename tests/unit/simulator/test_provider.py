"""The core: bytes in, an answer in the same dialect out; refusals are tried in test_strictness."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.support.fake_codec import finished
from tpo_mp.dialects import support
from tpo_mp.errors import Rejected
from tpo_mp.simulator.answers import Speech
from tpo_mp.simulator.provider import Answered, SimulatedProvider
from tpo_mp.types import Dialect


def answered(body: dict[str, Any], seed: int = 0, key: str = "") -> Answered:
    """An answer to a chat."""
    provider = SimulatedProvider(Speech(seed=seed))
    codec = support.codec("openai_chat")
    raw = json.dumps(body).encode()
    return finished(provider.generate(codec, Dialect.OPENAI_CHAT, raw, key))


def words(answer: Answered) -> str:
    """What it says."""
    text: str = json.loads(answer.body())["choices"][0]["message"]["content"]
    return text


def body(text: str = "rivers", **more: Any) -> dict[str, Any]:
    """A chat."""
    return {"model": "gpt-4o", "messages": [{"role": "user", "content": text}]} | more


def test_request_and_seed_make_the_answer() -> None:
    """Equal requests say the same in another process; another seed or request does not."""
    assert words(answered(body())) == words(answered(body(stream=True, user="me")))
    assert words(answered(body())) != words(answered(body(), seed=1))
    assert words(answered(body())) != words(answered(body(temperature=1)))


def test_key_stands_for_the_body() -> None:
    """Same key, same draws; the model still counts."""
    assert words(answered(body(temperature=1), key="k")) == words(answered(body(), key="k"))
    assert words(answered(body(), key="k")) != words(answered(body(model="gpt-4"), key="k"))


def test_frames_join_to_the_body() -> None:
    """The same text, and as many tokens as are counted."""
    answer = answered(body())
    frames = list(answer.frames(False, None))
    assert sum(token for _, token in frames) == answer.usage.completion
    text = b"".join(data for data, _ in frames)
    assert text.endswith(b"data: [DONE]\n\n")
    said = [
        json.loads(line[6:])["choices"][0]["delta"].get("content", "")
        for line in text.split(b"\n\n")
        if line and b"[DONE]" not in line
    ]
    assert "".join(said) == words(answer)


@pytest.mark.parametrize("model", ["text-embedding-3-small", "gpt-3.5-turbo-instruct"])
def test_model_of_another_kind_is_refused(model: str) -> None:
    """As the provider refuses it."""
    with pytest.raises(Rejected) as refused:
        answered(body(model=model))
    assert (refused.value.status, refused.value.param) == (404, "model")
