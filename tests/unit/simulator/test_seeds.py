"""Keys of requests and the random streams made of them."""

from __future__ import annotations

from functools import partial

import pytest

from tests.support.fake_env import FakeLedger, make_call
from tpo_mp.simulator.seeds import Occurrences, Repeats, key_of, key_of_bytes, stream_of

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


def occurrences(repeats: Repeats, bodies: list[bytes], workers: int) -> list[tuple[bytes, bytes]]:
    """The keys that requests draw by, taken by workers in turn."""
    ledger = FakeLedger()
    draws = [Occurrences(repeats, partial(ledger.ordinal, crowd=True)) for _ in range(workers)]
    found = []
    for number, body in enumerate(bodies):
        call = make_call(body)
        key = key_of_bytes(7, body)
        one = draws[number % workers]
        found.append((one.text(call, key), one.chance(call, key)))
    return found


@pytest.mark.parametrize("repeats", ["same_text", "vary", "same"])
def test_a_sequence_draws_the_same_whatever_the_number_of_workers(repeats: Repeats) -> None:
    """One, two or five workers."""
    bodies = [b"a", b"b", b"a", b"a", b"c", b"b", b"a"]
    alone = occurrences(repeats, bodies, 1)
    assert occurrences(repeats, bodies, 2) == occurrences(repeats, bodies, 5) == alone


def test_a_repeated_request_is_another_occurrence() -> None:
    """In its chances, and in its words where they are to vary; the first is the plain one."""
    key = key_of_bytes(7, b"a")
    texts, chances = zip(*occurrences("same_text", [b"a"] * 3, 2), strict=True)
    assert set(texts) == {key}
    assert len(set(chances)) == 3
    assert chances[0] == key
    texts, chances = zip(*occurrences("vary", [b"a"] * 3, 2), strict=True)
    assert texts == chances
    assert len(set(texts)) == 3
    assert occurrences("same", [b"a"] * 3, 2) == [(key, key)] * 3


def test_a_request_is_counted_once_and_only_when_it_draws() -> None:
    """However much of it is drawn; a word of the client's own is not counted at all."""
    ledger = FakeLedger()
    draws = Occurrences("vary", ledger.ordinal)
    call, key = make_call(b"a"), key_of_bytes(7, b"a")
    assert draws.text(call, key) == draws.chance(call, key)
    assert [cells[0] for cells in ledger.names.values()] == [1.0]
    named = make_call(b"a")
    named.forward = b"x-sim-key: mine\r\n"
    assert draws.chance(named, key) == key
    assert Occurrences("same_text", ledger.ordinal).text(make_call(b"a"), key) == key
    assert [cells[0] for cells in ledger.names.values()] == [1.0]
