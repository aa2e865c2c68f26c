"""The same requests get the same answers, whatever the number of workers."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.support.gateway import Gateway
from tests.support.raw import chat
from tests.support.shards import session_on

CHAT = "/v1/chat/completions"
CONFIG = """
[simulator]
seed = 11
repeats = "vary"

[[simulator.faults]]
error = "503"
probability = 0.5
when = { contains = "perhaps" }
"""
TIMES = 12


@pytest.fixture(scope="module")
def alone(short_tmp: Path) -> Iterator[Gateway]:
    """One worker."""
    with Gateway(short_tmp / "alone", config=CONFIG, verb="simulate") as gateway:
        yield gateway


@pytest.fixture(scope="module")
def two(short_tmp: Path) -> Iterator[Gateway]:
    """Two workers of the same seed."""
    with Gateway(short_tmp / "two", config=CONFIG, workers=2, verb="simulate") as gateway:
        yield gateway


def say(gateway: Gateway, text: str, headers: dict[str, str] | None = None) -> tuple[str, str]:
    """Ask on a connection of its own: what was said, and by which worker."""
    reply = gateway.ask(CHAT, chat(text, model="gpt-4o"), headers)
    assert reply.status == 200, reply.body
    said: str = reply.json()["choices"][0]["message"]["content"]
    return said, reply.headers["x-tpo-shard"]


def test_a_sequence_of_requests_is_answered_alike(alone: Gateway, two: Gateway) -> None:
    """Each repetition says something else, and the same on both hosts."""
    # Sessions spread them over both workers, however connections are accepted.
    homes = [session_on(two.url, n, model="gpt-4o") for n in range(2)]
    asked = [(f"sequence {n % 3}", {"x-session-id": homes[n // 3 % 2]}) for n in range(TIMES)]
    first = [say(alone, text, head)[0] for text, head in asked]
    answered = [say(two, text, head) for text, head in asked]
    assert [said for said, _ in answered] == first
    assert len(set(first)) == TIMES
    assert {shard for _, shard in answered} == {"0", "1"}


def test_requests_at_once_are_each_an_occurrence_of_their_own(alone: Gateway, two: Gateway) -> None:
    """No answer is given twice and none is left out, though two workers count."""
    first = [say(alone, "at once")[0] for _ in range(TIMES)]
    with ThreadPoolExecutor(6) as pool:
        at_once = list(pool.map(lambda _: say(two, "at once")[0], range(TIMES)))
    assert sorted(at_once) == sorted(first)


def test_chances_are_drawn_alike(alone: Gateway, two: Gateway) -> None:
    """The same repetitions fail, though each is drawn by itself."""
    asked = chat("perhaps", model="gpt-4o")
    fates = [
        [gateway.ask(CHAT, asked).status for _ in range(2 * TIMES)] for gateway in (alone, two)
    ]
    assert fates[0] == fates[1]
    assert set(fates[0]) == {200, 503}


def test_a_word_of_the_clients_own_is_always_answered_alike(two: Gateway) -> None:
    """``X-Sim-Key`` counts nothing."""
    answers = {say(two, "any", {"x-sim-key": "mine"})[0] for _ in range(6)}
    assert len(answers) == 1
