"""The prefix index: what is found, what gives way, what it costs nobody."""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest

from tests.support.prefix_child import chain
from tpo_mp.errors import Fault
from tpo_mp.shm.prefixes import NAMES, SETS, STAMP_S, WAYS, PrefixSegment, SharedPrefixes
from tpo_mp.shm.rows import RowTable


class Host:
    """Several processes with one index, and a clock."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.segment = PrefixSegment.create()
        self.rows = RowTable.create(8)

    def process(self) -> SharedPrefixes:
        """One of them."""
        return SharedPrefixes(self.segment, self.rows, lambda: self.now)


@pytest.fixture
def host() -> Iterator[Host]:
    """A new host."""
    made = Host()
    yield made
    made.segment.close()
    made.rows.close()


def test_what_one_process_records_another_finds(host: Host) -> None:
    """By the same numbers, and as deep as both prompts agree."""
    one, other = host.process(), host.process()
    one.record(chain(1, 10), one.number("a"))
    assert other.number("a") == one.number("a") == 1
    for agreed in range(11):
        assert other.find(chain(1, agreed) + chain(1, 7, "else")) == (
            (agreed, (1,)) if agreed else (0, ())
        )
    assert other.find([]) == (0, ())


def test_several_backends_may_have_a_beginning(host: Host) -> None:
    """The deepest known block says who; a backend that has less is not named."""
    index = host.process()
    a, b = index.number("a"), index.number("b")
    index.record(chain(1, 4), a)
    index.record(chain(1, 8), b)
    known, holders = index.find(chain(1, 8))
    assert (known, set(holders)) == (8, {b})
    known, holders = index.find(chain(1, 4))
    assert (known, set(holders)) == (4, {a, b})


def test_the_oldest_of_a_set_gives_way(host: Host) -> None:
    """What was recorded again lately stays; the index is no larger than it was."""
    index = host.process()
    number = index.number("a")

    def block(n: int) -> bytes:
        return n.to_bytes(5, "little") + b"\0\0\0"  # all in one set

    for n in range(1, WAYS + 1):
        index.record([block(n)], number)
    host.now += STAMP_S * 3
    index.record([block(1)], number, 1)  # used again
    for n in range(100, 100 + WAYS - 1):
        index.record([block(n)], number)
    assert index.find([block(1)]) == (1, (number,))
    assert [index.find([block(n)])[0] for n in range(2, WAYS + 1)] == [0] * (WAYS - 1)


def test_beginnings_in_use_are_kept_whole(host: Host) -> None:
    """Recording a known prompt again stamps all of it, but not at every call."""
    index = host.process()
    number, blocks = index.number("a"), chain(1, 6)
    index.record(blocks, number)
    before = bytes(host.segment.map)
    index.record(blocks, number, 6)
    assert bytes(host.segment.map) == before
    host.now += STAMP_S * 3
    index.record(blocks, number, 6)
    changed = sum(
        a != b
        for a, b in zip(
            host.segment.words.tolist(), memoryview(before).cast("Q").tolist(), strict=True
        )
    )
    assert changed == 6  # fmt: skip


def test_most_of_a_hundred_thousand_blocks_are_found(host: Host) -> None:
    """In an index of fixed size, whose sets are used evenly."""
    index = host.process()
    number = index.number("a")
    chains = [chain(n, 50) for n in range(2000)]
    for blocks in chains:
        index.record(blocks, number)
    assert sum(index.find(blocks)[0] == 50 for blocks in chains) > 1950
    assert SETS * WAYS >= 100_000


def test_rubbish_in_the_memory_is_a_wrong_hint_and_no_error(host: Host) -> None:
    """Whatever a dying process could leave, and more."""
    rng = random.Random(5)
    words = host.segment.words
    for n in range(600, len(words)):
        words[n] = rng.randrange(1 << 64)
    index = host.process()
    for n in range(50):
        known, holders = index.find(chain(n, 20))
        assert 0 <= known <= 20
        assert all(0 < number < 256 for number in holders)
        index.record(chain(n, 20), 1, known)
        assert 1 in index.find(chain(n, 1))[1]


def test_a_host_that_knows_too_many_names_keeps_nothing_of_more(host: Host) -> None:
    """The number 0 is nobody's."""
    index = host.process()
    assert len({index.number(f"b{n}") for n in range(NAMES)} - {0}) == NAMES
    assert index.number("one more") == 0
    index.record(chain(1, 3), 0)
    assert index.find(chain(1, 3)) == (0, ())


def test_other_memory_is_refused(host: Host) -> None:
    """By its first words."""
    host.segment.words[0] = 7
    with pytest.raises(Fault, match="another layout"):
        PrefixSegment.attach(host.segment.fd)


def test_names_beyond_the_last_number_are_not_looked_for_again(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A call would read all numbers under the host's lock, for every backend."""
    index = host.process()
    for n in range(NAMES):
        assert index.number(f"b{n}") == n + 1
    assert index.number("more") == 0
    monkeypatch.setattr(host.rows, "lock", None)
    assert index.number("more") == 0


def test_a_name_waits_for_nobody(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pick asks for it: without the lock there is no number now, and one the next time."""
    index = host.process()
    with monkeypatch.context() as patched:
        patched.setattr(host.rows, "acquire", lambda row, wait_ns: wait_ns > 1_000_000)
        assert index.number("a") == 0
    assert index.number("a") == 1
