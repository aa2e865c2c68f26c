"""What is left of a request whose text must not be kept."""

from __future__ import annotations

import json

import pytest

from tpo_mp.store.redaction import parameters_of


def test_numbers_stay_and_words_go() -> None:
    """Values of fields that are not known go, and so do their names."""
    body = {
        "model": "secret", "messages": [{"role": "user", "content": "secret"}],
        "max_tokens": 7, "temperature": 0.5, "stream": True, "user": "secret",
        "secret": 1, "metadata": {"secret": "secret"}, "stop": ["secret"], "top_p": None,
    }  # fmt: skip
    kept = parameters_of(json.dumps(body).encode())
    assert b"secret" not in kept
    assert json.loads(kept) == {"max_tokens": 7, "temperature": 0.5, "stream": True, "top_p": None}


@pytest.mark.parametrize(
    "body",
    [
        b"", b"secret", b'["secret"]', b'{"max_tokens": "secret"}', b'{"n": 1', b"\xff\xfe",
        b'"secret"', b"[" * 100_000, b'{"x": ' * 100_000,
    ],
)  # fmt: skip
def test_nothing_is_left_of_what_is_no_request(body: bytes) -> None:
    """Whatever it is, nothing is raised."""
    assert parameters_of(body) == b"{}"
