"""Who is granted a key: one call at a time, none after its answer, after a death on ask only."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tpo_mp.control.idempotency import FAILED_S, GRACE_S, KeyDesk
from tpo_mp.shm.callid import CallIds
from tpo_mp.store.key_questions import (
    KEYS,
    ClaimKey,
    EndKey,
    KeptAnswer,
    KeyAnswer,
    KeyQuestion,
    LookAtKey,
    decode_answer,
    encode,
)
from tpo_mp.store.questions import VALUE_BYTES
from tpo_mp.store.shelf import Shelf, ShelfOptions

FIRST, SECOND = CallIds(0, 7).new(), CallIds(1, 7).new()


class Host:
    """A desk, its store and who of its workers is alive."""

    def __init__(self, shelf: Shelf, run: int = 1) -> None:
        self.shelf = shelf
        self.alive = {(0, 7), (1, 7)}
        self.now = 100.0
        self.desk = KeyDesk(run, lambda seat, epoch: (seat, epoch) in self.alive, lambda: self.now)

    def ask(self, question: KeyQuestion, name: str = "k") -> KeyAnswer:
        """One question."""
        ok, raw = self.desk.answer(self.shelf, name, encode(question))
        assert ok
        assert raw is not None
        return decode_answer(raw)

    def claim(self, call_id: str, print_: bytes = b"p", *, again: bool = False) -> str:
        """How a key stands for who wants to run."""
        return self.ask(ClaimKey(call_id, print_, 60.0, again)).state

    def end(self, call_id: str, *, final: bool = True, **more: Any) -> str:
        """How a key stands after a call has ended."""
        answer = KeptAnswer(call_id, 200, b"text/plain", b"", b"hello", stream=False, **more)
        return self.ask(EndKey(call_id, b"p", 60.0, final, answer)).state


@pytest.fixture
def clock() -> list[float]:
    """The wall clock of the store."""
    return [1_000_000.0]


@pytest.fixture
def host(tmp_path: Path, clock: list[float]) -> Iterator[Host]:
    """A host with nothing kept."""
    shelf = Shelf(tmp_path, ShelfOptions(), clock=lambda: clock[0])
    yield Host(shelf)
    shelf.close()


def test_one_runs_and_its_answer_is_kept_for_its_time(host: Host, clock: list[float]) -> None:
    """Who asks twice because it heard nothing is told the same."""
    assert [host.claim(FIRST), host.claim(SECOND), host.claim(FIRST)] == [
        "yours",
        "running",
        "yours",
    ]
    assert host.end(SECOND) == "running"  # it is not its to end
    assert [host.end(FIRST), host.end(FIRST)] == ["done", "done"]
    told = host.ask(ClaimKey(SECOND, b"other", 60.0, again=True))
    assert (told.state, told.print, told.call_id) == ("done", b"p", FIRST)
    assert told.answer is not None
    assert told.answer.body == b"hello"
    clock[0] += 61
    assert host.ask(LookAtKey()).state == "free"
    assert host.claim(SECOND, b"other") == "yours"


def test_a_failure_is_told_to_who_looks_and_the_next_may_run(
    host: Host, clock: list[float]
) -> None:
    """For a moment."""
    host.claim(FIRST)
    assert host.end(FIRST, final=False) == "failed"
    assert host.ask(LookAtKey()).state == "failed"
    assert host.claim(SECOND, b"other") == "yours"
    assert host.end(FIRST, final=False) == "running"
    host.end(SECOND, final=False)
    clock[0] += FAILED_S + 1
    assert host.ask(LookAtKey()).state == "free"


def test_a_call_is_lost_with_its_worker_once_its_last_words_were_read(host: Host) -> None:
    """What it said before it died counts; then nobody runs it again unasked."""
    host.claim(FIRST)
    host.alive.clear()
    assert host.claim(SECOND) == "running"
    host.now += GRACE_S
    assert [host.claim(SECOND), host.ask(LookAtKey()).state] == ["lost", "lost"]
    assert host.claim(SECOND, b"other", again=True) == "lost"
    assert host.claim(SECOND, again=True) == "yours"
    assert host.end(FIRST) == "running"  # too late: another has it


def test_last_words_of_a_dead_worker_are_heard(host: Host) -> None:
    """Its answer lay in its ring."""
    host.claim(FIRST)
    host.alive.clear()
    assert host.claim(SECOND) == "running"
    assert host.end(FIRST) == "done"
    host.now += GRACE_S
    assert host.claim(SECOND) == "done"


def test_the_next_life_of_a_host_knows_them(host: Host) -> None:
    """Answers are answers, what ran is lost, though a worker sits in that seat again."""
    host.claim(FIRST)
    host.end(FIRST)
    host.ask(ClaimKey(FIRST, b"p", 60.0, again=False), "other")
    later = Host(host.shelf, run=2)
    assert later.claim(SECOND) == "done"
    assert later.ask(LookAtKey(), "other").state == "lost"


def test_what_cannot_be_read_or_kept_is_not_granted(host: Host) -> None:
    """Nonsense as a question is no answer; nonsense in the store is nobody's."""
    assert host.desk.answer(host.shelf, "k", b"nonsense") == (False, None)
    host.shelf.put(KEYS, "k", b"nonsense", 60.0)
    assert host.claim(FIRST) == "yours"
    large = EndKey(
        FIRST, b"p", 60.0, True, KeptAnswer(FIRST, 200, b"", b"", bytes(VALUE_BYTES), stream=False)
    )
    assert host.desk.answer(host.shelf, "k", encode(large)) == (False, None)
