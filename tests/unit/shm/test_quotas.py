"""The shared quotas: an update is whole whoever dies, and what the dead had taken comes back."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.support.deaths import dies_at
from tests.support.quota_host import ROWS, SEATS, QuotaHost
from tpo_mp.errors import Fault, Shed
from tpo_mp.shm import quotas as quotas_file
from tpo_mp.shm.quotas import SET_ROWS, QuotaSegment, SharedQuotas
from tpo_mp.types import Quota, QuotaReading

Host = QuotaHost


@pytest.fixture
def host() -> Iterator[Host]:
    """A host of its own."""
    made = Host()
    yield made
    made.close()


def peek(quotas: SharedQuotas, name: str = "n") -> Quota:
    """A name's quota, copied."""
    return quotas.update(name, lambda quota: quota)


def lease(requests: int, tokens: int, cell: int = 0) -> Callable[[Quota], Quota]:
    """Take so much in advance, and one place; nothing is spent yet."""

    def change(quota: Quota) -> Quota:
        quota.cells[cell] += requests
        quota.held += 1
        word = quota.lease(requests, tokens)
        quota.unspent[0] = word
        return quota

    return change


def test_all_seats_see_one_count(host: Host) -> None:
    """And who holds what of it."""
    one, two = host.seat(0), host.seat(1)
    one.update("n", lease(5, 70))
    two.update("n", lease(3, 20))
    seen = peek(two)
    assert (seen.cells[0], seen.held, seen.requests, seen.tokens) == (8, 1, 3, 20)
    assert (seen.others_held, seen.others_requests, seen.others_tokens) == (1, 5, 70)
    assert peek(one, "other").cells[0] == 0


def test_what_a_dead_seat_had_left_is_told_once(host: Host) -> None:
    """Its places are free at once; of its lease what it had not spent."""
    one, two = host.seat(0), host.seat(1)
    quota = one.update("n", lease(5, 70))
    quota.unspent[0] -= 2 << 8 | 30 << 24
    host.dies(0)
    seen = peek(two)
    assert (seen.others_held, seen.others_requests) == (0, 0)
    assert (seen.lost_requests, seen.lost_tokens) == (3, 40)
    assert (peek(two).lost_requests, peek(host.seat(0)).lost_requests) == (0, 0)


def test_a_seats_next_process_finds_what_the_last_one_left(host: Host) -> None:
    """Though it is the same seat; and its own leases are told apart from the old ones."""
    host.seat(0).update("n", lease(5, 70))
    host.dies(0)
    seen = host.seat(0).update("n", lease(4, 8))
    assert (seen.lost_requests, seen.held) == (5, 1)
    host.dies(0)
    assert peek(host.seat(1)).lost_requests == 4


@pytest.mark.parametrize("again", [False, True])
def test_a_writer_that_dies_leaves_the_old_quota_or_the_new_one(host: Host, again: bool) -> None:
    """At any line: what is used and what is leased of it fit together, and nothing is lost."""
    two, left = host.seat(1), True
    if again:
        host.seat(0).update("n", lease(1, 1))
        host.dies(0)
        peek(two)
    for event in range(1, 200):
        if not left:
            break
        one = host.seat(0)
        before = peek(two).cells[0]
        left = dies_at(event, lambda one=one: one.update("n", lease(7, 70)), quotas_file)  # type: ignore[misc]
        host.dies(0)
        seen = peek(two)
        assert seen.cells[0] - before == seen.lost_requests
        assert seen.lost_requests in (0, 7)
        assert seen.lost_tokens == seen.lost_requests * 10
        assert seen.others_held == 0
    assert not left


def test_a_change_that_fails_changes_nothing(host: Host) -> None:
    """And leaves the lock free."""
    one = host.seat(0)

    def fail(quota: Quota) -> None:
        quota.cells[0] = 9
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        one.update("n", fail)
    assert peek(one).cells[0] == 0


def test_a_name_that_somebody_holds_is_never_pushed_out(host: Host) -> None:
    """The others give way, oldest first; where all are held a newcomer is told to come back."""
    one = host.seat(0)
    one.update("held", lease(1, 0))
    for number in range(200):
        one.update(f"n{number}", lambda quota: quota.cells.__setitem__(0, 5))
    assert peek(one, "held").held == 1
    assert peek(one, "n0").cells[0] == 0

    def hold_too_many() -> None:
        for number in range(ROWS):
            one.update(f"h{number}", lease(1, 0))

    with pytest.raises(Shed) as told:
        hold_too_many()
    assert told.value.reason == "ledger_full"
    host.dies(0)
    assert peek(host.seat(1), "new").cells[0] == 0


def test_a_held_lock_is_told_of(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """No wrong count, and no hang."""
    refuse: Any = lambda row, wait_ns: False  # noqa: E731
    with monkeypatch.context() as patch:
        patch.setattr(host.table, "acquire", refuse)
        with pytest.raises(Shed, match="does not run"):
            peek(host.seat(0))
    assert host.refused.value == 1
    assert peek(host.seat(0)).cells[0] == 0


def test_names_are_read_for_people(host: Host) -> None:
    """Without a lock, whole names however long."""
    one = host.seat(0)
    one.update("é" * 50, lease(4, 0, cell=5))
    found = list(one.readings(0, one.rows))
    (reading,) = found
    assert isinstance(reading, QuotaReading)
    assert reading.name.startswith("é" * 35)
    assert (reading.cells[5], reading.held, reading.unspent) == (4, 1, 4)
    one.update("tokens", lease(2, 70))
    assert [found.unspent_tokens for found in one.readings(0, one.rows)] in ([0, 70], [70, 0])


def test_another_segment_is_refused(host: Host) -> None:
    """Of other rows or seats."""
    with pytest.raises(Fault):
        QuotaSegment.map_inherited(os.dup(host.segment.fd), SEATS + 1, ROWS)
    again = QuotaSegment.map_inherited(os.dup(host.segment.fd), SEATS, ROWS)
    again.close()
    assert QuotaSegment.rows_for(200) % SET_ROWS == 0


def test_a_name_is_looked_at_without_giving_it_a_place(host: Host) -> None:
    """With what living and dead hold ahead; who was never there is nobody."""
    one, two = host.seat(0), host.seat(1)
    assert two.look("n") is None
    one.update("n", lease(5, 70))
    two.update("n", lease(3, 20)).unspent[0] -= 1 << 8 | 5 << 24
    host.dies(0)
    assert two.look("n") == ((8, 0, 0, 0, 0, 0, 0, pytest.approx(0, abs=1e9)), 7, 85)
    assert two.look("n", crowd=True) is None
    assert two.look("other") is None


def test_what_begins_anew_owes_no_lease(host: Host) -> None:
    """Of the living it counts no more, of the dead it is not told as lost, and new ones are."""
    one, two, three = host.seat(0), host.seat(1), host.seat(2)
    one.update("n", lease(5, 70))
    two.update("n", lease(3, 20))
    before = peek(one)

    def anew(quota: Quota) -> None:
        quota.void()
        quota.cells[0] = 0

    three.update("n", anew)
    seen = peek(one)
    assert (seen.requests, seen.tokens) == (0, 0)
    assert seen.number != before.number
    assert three.look("n") is not None
    assert peek(three).others_requests == 0
    host.dies(1)
    assert peek(three).lost_requests == 0
    one.update("n", lease(4, 8))
    host.dies(0)
    assert peek(three).lost_requests == 4


def test_the_words_of_the_dead_are_never_taken_for_a_later_lease(host: Host) -> None:
    """Though the seat's next process had none, or died before it wrote a word of its own."""
    two = host.seat(1)
    host.seat(0).update("n", lease(5, 70)).unspent[0] -= 2 << 8 | 30 << 24
    host.dies(0)
    assert peek(two).lost_tokens == 40
    for _ in range(3):
        peek(host.seat(0))
        found = two.look("n")
        assert found is not None
        assert (found.requests, found.tokens) == (0, 0)
        host.dies(0)
        assert peek(two).lost_tokens == 0

    def unwritten(quota: Quota) -> None:
        quota.lease(4, 8)

    host.seat(0).update("n", unwritten)
    host.dies(0)
    assert peek(two).lost_tokens == 8
