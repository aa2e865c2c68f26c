"""The real engine is real, quick and repeatable."""

from __future__ import annotations

import pytest

from tests.support.raw import ask, chat
from tests.support.tiny_model import MlxServer


@pytest.mark.engine
def test_engine_repeats_itself_at_temperature_0(mlx: MlxServer) -> None:
    """The same prompt gives the same text; another prompt another."""

    def say(text: str) -> str:
        body = chat(text, model=mlx.model, max_tokens=16, temperature=0)
        content: str = ask(mlx.url, "/v1/chat/completions", body).json()["choices"][0]["message"][
            "content"
        ]
        return content

    first, again, other = say("hello"), say("hello"), say("something else")
    assert first == again
    assert first != other
