"""Looking at the ledger without a lock: whole states only, the newest there is, and cheap."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.deaths import dies_at
from tests.support.fake_env import SilentMetrics
from tpo_mp.errors import Shed
from tpo_mp.ports import Cells
from tpo_mp.shm import rows as rows_file
from tpo_mp.shm.ledger import LEAST_ROWS, PLACES, SharedLedger
from tpo_mp.shm.rows import RowTable

ZEROS: Cells = (0.0, 0.0, 0.0, 0.0)


def put(ledger: SharedLedger, name: str, value: float, crowd: bool = False) -> Cells:
    """Set all numbers of a name."""
    return ledger.update(name, lambda _: (value,) * 4, crowd=crowd)  # type: ignore[arg-type,return-value]


@pytest.fixture
def table() -> Iterator[RowTable]:
    """The smallest table."""
    made = RowTable.create(LEAST_ROWS)
    yield made
    made.close()


@pytest.fixture
def ledger(table: RowTable) -> SharedLedger:
    """A ledger on it."""
    return SharedLedger(table, SilentMetrics())


def test_it_sees_what_any_process_wrote_last(table: RowTable, ledger: SharedLedger) -> None:
    """Zeros at first; then each change, whoever made it; names in order, the crowd's last."""
    other = SharedLedger(table, SilentMetrics())
    watch = other.watch("a", "b", crowd=["a"])
    assert watch.peek() == (ZEROS, ZEROS, ZEROS)
    put(ledger, "b", 2.0)
    assert watch.peek() == (ZEROS, (2.0,) * 4, ZEROS)
    put(ledger, "a", 3.0, crowd=True)
    put(other, "b", 4.0)
    assert watch.peek() == (ZEROS, (4.0,) * 4, (3.0,) * 4)
    one = ledger.watch("b")
    assert one.peek() == ((4.0,) * 4,)


def test_a_look_gives_no_name_a_place(table: RowTable, ledger: SharedLedger) -> None:
    """Zeros for a stranger; the numbers of others, of the config and of the crowd apart."""
    before = table.map[:]
    assert ledger.look("a") == ledger.look("a", crowd=True) == ZEROS
    assert table.map[:] == before
    put(ledger, "a", 2.0)
    put(ledger, "b", 3.0)
    assert (ledger.look("a"), ledger.look("b")) == ((2.0,) * 4, (3.0,) * 4)
    assert ledger.look("a", crowd=True) == ZEROS


def test_the_same_tuple_means_that_nothing_changed(ledger: SharedLedger) -> None:
    """And another name's changes are nothing."""
    watch = ledger.watch("a", "b")
    first = watch.peek()
    assert watch.peek() is first
    put(ledger, "c", 1.0)
    assert watch.peek() is first
    put(ledger, "a", 1.0)
    assert watch.peek() is not first
    assert watch.peek() is watch.peek()


def test_while_nothing_changes_no_row_is_copied(
    ledger: SharedLedger, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A word per row is all it reads."""
    watch = ledger.watch("a", "b", "c", "d")
    watch.peek()
    monkeypatch.setattr(type(watch), "_copy", None)
    for _ in range(3):
        assert watch.peek() == (ZEROS,) * 4


def test_of_a_writer_that_dies_it_sees_the_row_as_it_was_or_became(
    table: RowTable, ledger: SharedLedger
) -> None:
    """At whatever line; and what the next update makes of it."""
    watch = ledger.watch("a", "other")
    put(ledger, "a", 1.0)
    for event in range(1, 200):
        value = watch.peek()[0][0]
        died = dies_at(event, partial(ledger.ordinal, "a"), rows_file)
        table._held.clear()  # the kernel drops a dead process's locks
        assert watch.peek()[0][0] in (value, value + 1)
        assert watch.peek()[1] == ZEROS
        mended = ledger.ordinal("a")
        assert watch.peek()[0][0] == mended
        if not died:
            break
    assert not died


def test_a_payload_that_is_not_its_words_is_not_believed(
    table: RowTable, ledger: SharedLedger
) -> None:
    """As a reader meets it whose word is older than the bytes it copies, or newer."""
    watch = ledger.watch("a")
    put(ledger, "a", 1.0)
    assert watch.peek() == ((1.0,) * 4,)
    put(ledger, "a", 2.0)
    at = rows_file.HEADER + watch._rows[0] * rows_file.ROW_BYTES
    whole = table.map[at + 8 : at + 64]
    table.map[at + 28 : at + 36] = b"\1" * 8
    assert watch.peek() == ((1.0,) * 4,)
    table.map[at + 8 : at + 64] = whole
    assert watch.peek() == ((2.0,) * 4,)


def test_a_name_that_lost_its_place_takes_one_again(ledger: SharedLedger) -> None:
    """It begins at zeros, and what is written to it afterwards is seen."""
    watch = ledger.watch("a")
    put(ledger, "a", 5.0)
    assert watch.peek() == ((5.0,) * 4,)
    for number in range(PLACES):
        ledger.ordinal(f"passing-{number}")
    assert watch.peek() == (ZEROS,)
    put(ledger, "a", 6.0)
    assert watch.peek() == ((6.0,) * 4,)


def test_a_row_that_cannot_be_had_reads_as_zeros_until_it_can(
    table: RowTable, ledger: SharedLedger, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stopped holder of its set does not keep a watch from being made."""
    put(ledger, "a", 1.0)
    with monkeypatch.context() as patch:
        patch.setattr(table, "acquire", lambda *_: False)
        with pytest.raises(Shed):
            ledger.ordinal("a")
        watch = ledger.watch("a")
        assert watch.peek() == (ZEROS,)
    assert watch.peek() == ((1.0,) * 4,)


@settings(max_examples=50)
@given(
    st.lists(st.tuples(st.sampled_from("abcdefgh"), st.integers(0, 3), st.booleans()), max_size=60)
)
def test_any_order_of_writes_and_looks_is_as_under_the_lock(
    steps: list[tuple[str, int, bool]],
) -> None:
    """With more names than a set has places, so that rows change hands."""
    table = RowTable.create(LEAST_ROWS)
    try:
        writer = SharedLedger(table, SilentMetrics())
        reader = SharedLedger(table, SilentMetrics())
        watches = {name: reader.watch(name) for name in "abc"}
        for name, value, look in steps:
            put(writer, name, float(value))
            if look and name in watches:
                assert watches[name].peek() == ((float(value),) * 4,)
        for name, watch in watches.items():
            assert watch.peek()[0] == writer.update(name, lambda cells: cells)
    finally:
        table.close()
