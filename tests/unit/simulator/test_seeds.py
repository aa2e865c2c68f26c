"""Keys of requests and the random streams made of them."""

from __future__ import annotations

from tpo_mp.simulator.seeds import key_of, stream_of

BODY = {"model": "m", "messages": [{"role": "user", "content": "hi"}], "temperature": 0.5}


def test_delivery_and_sender_are_no_part_of_a_request() -> None:
    """Streamed or not, by whomever, in whatever order of keys."""
    other = dict(reversed(BODY.items())) | {"stream": True, "user": "me", "metadata": {"a": "b"}}
    assert key_of(0, BODY) == key_of(0, other)


def test_words_settings_and_seed_are() -> None:
    """Each changes the key."""
    keys = {
        key_of(0, BODY), key_of(1, BODY), key_of(0, BODY | {"temperature": 0.6}),
        key_of(0, BODY | {"seed": 1}), key_of(0, BODY | {"model": "n"}),
    }  # fmt: skip
    assert len(keys) == 5


def test_streams_repeat_and_differ_by_name() -> None:
    """The same part draws the same, another part something else."""
    key = key_of(0, BODY)
    assert stream_of(key, "text", 0).random() == stream_of(key, "text", 0).random()
    assert stream_of(key, "text", 0).random() != stream_of(key, "text", 1).random()
    assert stream_of(key, "text", 0).random() != stream_of(key, "tool", 0).random()
