"""Marks of bodies that workers died with: when they convict, whom, and what clears them."""

from __future__ import annotations

from typing import Any

import pytest

from tests.support.fake_env import FakeWorld, make_call
from tpo_mp.errors import WorkerLost
from tpo_mp.pipeline.endings import ending, tell_ended
from tpo_mp.pipeline.poison import DIGESTED_BYTES, KEPT_S, ROWS, Poison, digest_of_body
from tpo_mp.types import Call, Terminal

BODY = b'{"kills": true}'
DIGEST = digest_of_body(BODY)


def poison(world: FakeWorld) -> Poison:
    """One process's view."""
    return Poison(world.env.ledger, world.env.clock, world.env.metrics)


def let_in(process: Poison, body: bytes = BODY) -> Call | None:
    """The call, if it may come in."""
    call = make_call(body)
    if process.armed():
        try:
            process.check(call)
        except WorkerLost:
            return None
    return call


def test_nothing_is_asked_for_while_nobody_died() -> None:
    """No mark, no row but the one that is looked at."""
    world = FakeWorld()
    assert let_in(poison(world))
    assert set(world.env.ledger.names) <= {"poison:armed"}  # type: ignore[attr-defined]


def test_second_death_convicts_in_every_process() -> None:
    """Of that body, and no other; until it is forgotten."""
    world = FakeWorld()
    one, two, control = (poison(world) for _ in range(3))
    for expected in (1, 2):
        assert let_in(one)
        assert let_in(two)
        began, died = world.now + 0.1, world.now + 1
        world.now += 1
        assert control.mark(DIGEST, began, died) == expected
    for process in (one, two):
        with pytest.raises(WorkerLost) as caught:
            process.check(make_call(BODY))
        assert (caught.value.reason, caught.value.status) == ("poison", 503)
    assert let_in(one, b'{"kills": false}')
    world.now += KEPT_S + 1
    assert let_in(one)
    assert not one.armed()


def test_one_death_is_one_whoever_saw_it() -> None:
    """Many calls of one body, on two workers that died together, are one suspicion."""
    world = FakeWorld()
    control = poison(world)
    for began in (990.0, 999.9, 995.0):
        for died in (1000.0, 1000.04):
            assert control.mark(DIGEST, began, died) == 1
    assert let_in(poison(world))


def test_good_end_clears_a_suspect_but_no_convict() -> None:
    """A body that was answered does not kill; one that failed may."""
    world = FakeWorld()
    process = poison(world)
    for terminal, left in ((Terminal.FAILED, 2), (Terminal.DONE, 1)):
        world.now += 100
        process.mark(DIGEST, world.now - 1, world.now)
        call = let_in(process)
        if terminal is Terminal.FAILED:
            assert call is not None
            tell_ended(call, ending(terminal, None, None, 1))
            world.now += 10
            assert process.mark(DIGEST, world.now - 1, world.now) == left
            world.now += KEPT_S
        else:
            assert call is not None
            tell_ended(call, ending(terminal, None, None, 1))
            world.now += 10
            assert process.mark(DIGEST, world.now - 1, world.now) == left


def test_suspects_do_not_displace_a_convict() -> None:
    """Though they meet in one row."""
    world = FakeWorld()
    process = poison(world)
    process.mark(DIGEST, 999, 1000)
    process.mark(DIGEST, 1001, 1002)
    other = DIGEST + ROWS
    assert process.mark(other, 1003, 1004) == 0
    assert let_in(process) is None


@pytest.mark.parametrize("more", [b"", b"x", bytes(DIGESTED_BYTES)], ids=["same", "more", "long"])
def test_digest_tells_bodies_apart_and_fits_a_float(more: bytes) -> None:
    """Exactly, also by length alone."""
    digest: Any = digest_of_body(BODY + more)
    assert int(float(digest)) == digest > 0
    assert (digest == DIGEST) == (not more)
