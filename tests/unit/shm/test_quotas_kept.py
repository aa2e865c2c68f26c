"""Counts that outlive the host: told apart without names, found when they change, put back."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.support.quota_host import QuotaHost
from tpo_mp.ports import Cells
from tpo_mp.shm.quotas import KEPT_BYTES, SharedQuotas, digest_of
from tpo_mp.shm.quotas_kept import KeptRows, restore
from tpo_mp.types import Quota


@pytest.fixture
def host() -> Iterator[QuotaHost]:
    """A host of its own."""
    made = QuotaHost()
    yield made
    made.close()


def put(quotas: SharedQuotas, name: str, *cells: float, crowd: bool = False, ahead: int = 0) -> Any:
    """Give a name four numbers, some of the second one only held ahead, as two calls."""

    def change(quota: Quota) -> memoryview | list[int]:
        quota.cells[:4] = cells
        if ahead:
            quota.unspent[0] = quota.lease(2, ahead)
        return quota.unspent

    return quotas.update(name, change, crowd=crowd)


def read(quotas: SharedQuotas, name: str, *, crowd: bool = False) -> Cells | None:
    """The numbers of a name."""
    found = quotas.look(name, crowd=crowd)
    return None if found is None else found.spent()


def added(there: Cells, kept: Cells) -> Cells:
    """Cell by cell."""
    a, b, c, d = (x + y for x, y in zip(there, kept, strict=True))
    return (a, b, c, d)


def head(name: str) -> bytes:
    """What is written down of a name."""
    return digest_of(name)[:KEPT_BYTES]


def test_only_kept_counts_that_changed_are_found(host: QuotaHost) -> None:
    """Once each, with what they are now and where they belong."""
    quotas = host.seat(0)
    kept = KeptRows(host.seat(1))
    assert kept.changed() == []
    put(quotas, "kept:a", 1, 2, 3, 4)
    put(quotas, "kept:b", 5, 6, 7, 8, crowd=True)
    put(quotas, "other", 9, 9, 9, 9)
    assert {(row.digest, row.crowd, row.cells) for row in kept.changed()} == {
        (head("kept:a"), False, (1, 2, 3, 4)),
        (head("kept:b"), True, (5, 6, 7, 8)),
    }
    assert kept.changed() == []
    put(quotas, "kept:a", 1, 2, 3, 5)
    assert [row.cells for row in kept.changed()] == [(1, 2, 3, 5)]
    kept.forget()
    assert len(kept.changed()) == 2


def test_what_is_held_ahead_was_not_used(host: QuotaHost) -> None:
    """It is gone with the host: after it there is as much as calls really used."""
    unspent = put(host.seat(0), "kept:a", 0, 100, 5, 1, ahead=60)
    unspent[0] -= 10 << 24 | 1 << 8
    assert [row.cells for row in KeptRows(host.seat(1)).changed()] == [(0, 50, 4, 1)]


def test_a_set_that_is_held_is_looked_at_the_next_time(
    host: QuotaHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It keeps nobody from going on."""
    put(host.seat(0), "kept:a", 1, 2, 3, 4)
    kept = KeptRows(host.seat(1))
    with monkeypatch.context() as patch:
        patch.setattr(host.table, "acquire", lambda row, wait_ns: False)
        assert kept.changed() == []
    assert [found.cells for found in kept.changed()] == [(1, 2, 3, 4)]


def test_counts_come_back_in_another_host(host: QuotaHost) -> None:
    """Each under its name, joined with what is there already."""
    put(host.seat(0), "kept:a", 1, 2, 3, 4)
    put(host.seat(0), "kept:b", 5, 6, 7, 8, crowd=True)
    rows = KeptRows(host.seat(1)).changed()
    other = QuotaHost()
    try:
        second = other.seat(0)
        put(second, "kept:a", 0, 10, 0, 0)
        assert restore(second, rows, added) == 2
        assert read(second, "kept:a") == (1, 12, 3, 4)
        assert read(second, "kept:b", crowd=True) == (5, 6, 7, 8)
        assert read(second, "kept:b") is None
        assert len(KeptRows(second).changed()) == 2
    finally:
        other.close()


def test_a_count_of_another_start_comes_back_without_what_is_ahead(host: QuotaHost) -> None:
    """What a worker holds of the count that gives way is worth nothing any more."""
    quotas = host.seat(0)
    put(quotas, "kept:a", 1, 60, 2, 4, ahead=60)
    rows = [row._replace(cells=(7.0, 30.0, 1.0, 9.0)) for row in KeptRows(host.seat(1)).changed()]
    assert restore(host.seat(2), rows, lambda _, kept: kept) == 1
    assert read(quotas, "kept:a") == (7, 30, 1, 9)
