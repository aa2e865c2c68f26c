"""Metrics of a host: same series same cells, totals that outlive their process."""

from __future__ import annotations

import os
from collections.abc import Iterator
from math import inf, nan

import pytest

from tpo_mp.errors import Fault
from tpo_mp.ports import Metrics
from tpo_mp.shm.metrics import MAX_LABEL_VALUES, OTHER, MetricsArena, clean_label
from tpo_mp.shm.scrape import Family, Sample
from tpo_mp.shm.series import CELLS, DIRECTORY_BYTES, FIRST_CELL, MAX_BOUNDS


@pytest.fixture
def arena() -> Iterator[MetricsArena]:
    """An arena of three seats."""
    made = MetricsArena.create(3)
    yield made
    made.close()


def family(arena: MetricsArena, name: str) -> Family:
    """One family of a scrape."""
    return next(found for found in arena.collect() if found.name == name)


def value(arena: MetricsArena, name: str, **labels: str) -> float:
    """One sample's value."""
    key = tuple(sorted(labels.items()))
    return next(s.value for s in family(arena, name).samples if s.labels == key)


def test_a_block_is_what_features_are_given(arena: MetricsArena) -> None:
    """It has the shape of the port (checked by the type checker as well)."""
    metrics: Metrics = arena.block(0, 1)
    metrics.counter("c", "Help.").inc()
    metrics.gauge("g", "Help.").set(2.5)
    metrics.gauge("g", "Help.").add(-1.0)
    metrics.histogram("h", "Help.", (0.1, 1.0)).observe(0.5)
    assert value(arena, "c") == 1
    assert value(arena, "g") == 1.5
    assert value(arena, "h") == 1


def test_the_same_series_is_the_same_cells(arena: MetricsArena) -> None:
    """Asking twice, in any order of labels, answers the same object."""
    block = arena.block(0, 1)
    first = block.counter("c", "Help.", a="1", b="2")
    assert block.counter("c", "Help.", b="2", a="1") is first
    assert block.counter("c", "Help.", a="1", b="3") is not first


def test_a_series_may_be_written_through_its_cell(arena: MetricsArena) -> None:
    """Hot code adds to the word itself."""
    block = arena.block(1, 1)
    index = block.counter("c", "Help.").index
    block.cells[index] += 3
    assert value(arena, "c") == 3


def test_seats_are_summed(arena: MetricsArena) -> None:
    """A scrape shows the host, whichever process asks."""
    for seat in range(3):
        block = arena.block(seat, 1)
        block.counter("c", "Help.", k="v").inc(seat + 1)
        block.gauge("g", "Help.").set(0.5)
    other = MetricsArena.attach(os.dup(arena.fd), 3)
    assert value(other, "c", k="v") == 6
    assert value(other, "g") == 1.5
    other.close()


def test_dollars_are_counted_in_billionths(arena: MetricsArena) -> None:
    """Cells are whole numbers; the seats' are added up first, and a successor goes on."""
    for seat in (0, 1):
        money = arena.block(seat, 1).money("usd", "Help.", model="m")
        arena.block(seat, 2).cells[money.index] += 1_500
    assert value(arena, "usd", model="m") == pytest.approx(3e-6)


def test_bounds_are_upper_and_inclusive(arena: MetricsArena) -> None:
    """As Prometheus counts: le = less or equal; the sum is exact to a millionth."""
    h = arena.block(0, 1).histogram("h", "Help.", (0.1, 1.0))
    for seen in (0.05, 0.1, 0.100001, 1.0, 2.0):
        h.observe(seen)
    (sample,) = family(arena, "h").samples
    assert sample.buckets == ((0.1, 2), (1.0, 4), (inf, 5))
    assert sample.sum == pytest.approx(3.250001, abs=1e-5)


@pytest.mark.parametrize("odd", [0.0, -1.0, nan, inf, -inf, 1e300])
def test_an_absurd_value_counts_but_is_not_summed(arena: MetricsArena, odd: float) -> None:
    """A broken clock cannot break the data plane or the sum."""
    h = arena.block(0, 1).histogram("h", "Help.", (1.0,))
    h.observe(odd)
    h.observe(0.25)
    (sample,) = family(arena, "h").samples
    assert (sample.value, sample.sum) == (2, 0.25)


def test_the_next_occupant_continues(arena: MetricsArena) -> None:
    """Counters and histograms go on, gauges restart, cells stay where they were."""
    old = arena.block(0, 1)
    old.counter("c", "Help.", k="v").inc(5)
    old.gauge("g", "Help.").set(7.0)
    old.histogram("h", "Help.", (1.0,)).observe(0.5)
    successor = MetricsArena.attach(os.dup(arena.fd), 3)
    new = successor.block(0, 2)
    assert value(arena, "g") == 0.0
    assert value(arena, "c", k="v") == 5
    again = new.counter("c", "Help.", k="v")
    assert again.index == old.counter("c", "Help.", k="v").index
    again.inc()
    new.histogram("h", "Help.", (1.0,)).observe(0.5)
    new.counter("d", "New.").inc()
    assert value(arena, "c", k="v") == 6
    assert value(arena, "h") == 2
    assert value(arena, "d") == 1
    successor.close()


def test_a_new_series_starts_at_zero(arena: MetricsArena) -> None:
    """Whatever a predecessor left in cells that no record names is cleared."""
    arena.block(0, 1).cells[FIRST_CELL] = 99
    arena.block(0, 2).counter("c", "Help.").inc()
    assert value(arena, "c") == 1


def test_the_same_occupant_keeps_its_gauges(arena: MetricsArena) -> None:
    """Only a new epoch zeroes them."""
    arena.block(0, 1).gauge("g", "Help.").set(7.0)
    arena.block(0, 1)
    assert value(arena, "g") == 7.0


def test_a_retired_seat_has_no_levels(arena: MetricsArena) -> None:
    """What the supervisor does for a dead worker whose successor is late."""
    block = arena.block(0, 1)
    block.gauge("g", "Help.").set(7.0)
    block.counter("c", "Help.").inc()
    arena.retire(0)
    assert value(arena, "g") == 0.0
    assert value(arena, "c") == 1


def test_label_values_are_bounded(arena: MetricsArena) -> None:
    """The 65th value of a label is "other", for this occupant and the next."""
    block = arena.block(0, 1)
    for n in range(MAX_LABEL_VALUES + 10):
        block.counter("c", "Help.", model=f"m{n}").inc()
    assert value(arena, "c", model=OTHER) == 10
    assert len(family(arena, "c").samples) == MAX_LABEL_VALUES + 1
    again = arena.block(0, 2)
    again.counter("c", "Help.", model="yet another").inc()
    again.counter("c", "Help.", model="m3").inc()
    assert value(arena, "c", model=OTHER) == 11
    assert value(arena, "c", model="m3") == 2


def test_values_that_are_allowed_stand_beside_the_first_64(arena: MetricsArena) -> None:
    """Whatever came before them; what is neither is "other"."""
    block = arena.block(0, 1)
    for n in range(MAX_LABEL_VALUES):
        block.counter("c", "Help.", path=f"p{n}").inc()
    block.allow("c", "path", ["/a", "/b"])
    for path in ("/a", "/b", "/c"):
        block.counter("c", "Help.", path=path).inc()
    assert [value(arena, "c", path=path) for path in ("/a", "/b", OTHER)] == [1, 1, 1]


def test_label_values_are_printable_and_short() -> None:
    """Control characters and lone surrogates never reach an exposition."""
    assert clean_label("gpt-4o") == "gpt-4o"
    assert clean_label("a\nb\x00c\ud800") == "a?b?c?"
    assert clean_label("x" * 100) == "x" * 64
    assert clean_label("é世") == "é世"


def test_a_name_has_one_kind_and_one_set_of_labels(arena: MetricsArena) -> None:
    """Two meanings of one name are a defect, found where it is made."""
    block = arena.block(0, 1)
    block.counter("c", "Help.", a="1")
    with pytest.raises(ValueError, match="exists as counter"):
        block.gauge("c", "Help.", a="1")
    with pytest.raises(ValueError, match="exists as counter"):
        block.counter("c", "Help.", b="1")


@pytest.mark.parametrize(
    "bounds", [(1.0, 0.5), (1.0, 1.0), tuple(map(float, range(MAX_BOUNDS + 1)))]
)
def test_bounds_must_ascend_and_be_few(arena: MetricsArena, bounds: tuple[float, ...]) -> None:
    """The sink must hold the widest histogram."""
    with pytest.raises(ValueError, match="bounds must ascend"):
        arena.block(0, 1).histogram("h", "Help.", bounds)


def test_a_series_keeps_its_first_bounds(arena: MetricsArena) -> None:
    """A later configuration cannot move cells under a running count."""
    block = arena.block(0, 1)
    first = block.histogram("h", "Help.", (1.0, 2.0))
    assert block.histogram("h", "Help.", (5.0,)) is first


def test_a_full_block_turns_series_away_and_says_so(arena: MetricsArena) -> None:
    """Overflow is counted once per series; what it writes harms nobody and is not shown."""
    block = arena.block(0, 1)
    wide = tuple(map(float, range(MAX_BOUNDS)))
    made = 0
    while not block.overflows:
        block.histogram(f"h{made}", "", wide).observe(30.5)
        made += 1
    assert made == (CELLS - FIRST_CELL) // (MAX_BOUNDS + 2) + 1
    sunk = block.histogram(f"h{made - 1}", "", wide)
    for _ in range(10):
        sunk.observe(1e9)
    assert block.overflows == 1
    assert value(arena, "tpo_metrics_overflow_total") == 1
    shown = [f for f in arena.collect() if f.kind == "histogram"]
    assert len(shown) == made - 1
    assert all(f.samples[0].value == 1 for f in shown)


def test_a_full_directory_turns_series_away_too(arena: MetricsArena) -> None:
    """Long names end at the directory's last byte."""
    block = arena.block(0, 1)
    text = "h" * 4000
    for n in range(DIRECTORY_BYTES // 4000 + 1):
        block.counter(f"c{n}", text).inc()
    assert block.overflows >= 1
    assert value(arena, "c0") == 1


def test_values_seen_in_an_overflow_are_bounded_as_well(arena: MetricsArena) -> None:
    """An attacker's labels cannot grow a full block's memory."""
    block = arena.block(0, 1)
    while not block.overflows:
        block.counter(f"fill{block._directory.next_cell}", "h" * 3000)
    for n in range(MAX_LABEL_VALUES * 3):
        block.counter("late", "h" * 3000, model=f"m{n}")
    assert len(block._values["late", "model"]) == MAX_LABEL_VALUES


def test_help_comes_from_whoever_gives_it(arena: MetricsArena) -> None:
    """It is stored once per family and block."""
    block = arena.block(0, 1)
    block.counter("c", "What it counts.", a="1")
    block.counter("c", "What it counts.", a="2")
    assert [entry.help for entry in block._directory.entries] == ["What it counts.", ""]
    assert family(arena, "c").help == "What it counts."
    assert Sample((("a", "2"),), 0) in family(arena, "c").samples


def test_another_arena_is_refused(arena: MetricsArena) -> None:
    """Other seats or another layout is a fault, not a guess."""
    with pytest.raises(Fault):
        MetricsArena.attach(os.dup(arena.fd), 4)
    arena._segment.words[1] += 1
    with pytest.raises(Fault, match="another layout"):
        MetricsArena.attach(os.dup(arena.fd), 3)
