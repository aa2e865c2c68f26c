"""A stream's events, read in pages from any number on."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from random import Random
from typing import Any

import pytest

from tpo_mp.pipeline import response_log
from tpo_mp.pipeline.response_log import EventPage, LogSpace, ResponseLog


def run(work: Coroutine[Any, Any, None]) -> None:
    """Run a story on a loop of its own."""
    asyncio.run(work)


def filled(*events: bytes, space: LogSpace | None = None) -> ResponseLog:
    """A log with some events."""
    log = ResponseLog(space or LogSpace())
    for event in events:
        log.append(event)
    return log


def test_pages_follow_each_other_without_gap() -> None:
    """As many as fit, at least one; the last says that nothing follows."""

    async def story() -> None:
        log = filled(b"aa", b"bb", b"cccccc", b"d")
        log.end()
        pages = [await log.page(-1, 0, 5)]
        while not pages[-1].ended:
            pages.append(await log.page(pages[-1].last, 0, 5))
        assert [page.data for page in pages] == [b"aabb", b"cccccc", b"d"]
        assert [page.last for page in pages] == [1, 2, 3]
        assert await log.page(2, 0) == EventPage(b"d", 3, ended=True)
        assert await log.page(3, 0) == EventPage(b"", 3, ended=True)
        assert (await log.page(99, 0)).ended

    run(story())


def test_reader_at_the_end_waits_for_the_next_event() -> None:
    """Several readers get it at once; a wait that is over answers an empty page."""

    async def story() -> None:
        log = filled(b"a")
        assert await log.page(0, 0.01) == EventPage(b"", 0)
        readers = [asyncio.create_task(log.page(0, 10)) for _ in range(3)]
        await asyncio.sleep(0)
        log.append(b"b")
        assert [page.data for page in await asyncio.gather(*readers)] == [b"b"] * 3
        last = asyncio.create_task(log.page(1, 10))
        await asyncio.sleep(0)
        log.end()
        assert await last == EventPage(b"", 1, ended=True)

    run(story())


def test_full_log_drops_from_the_front(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who wants what was dropped is told so; the rest is read as before."""
    monkeypatch.setattr(response_log, "MAX_LOG_BYTES", 10)

    async def story() -> None:
        space = LogSpace()
        log = filled(b"aaaa", b"bbbb", b"cccc", space=space)
        assert space.used == 8
        assert (await log.page(-1, 0)).gone
        assert await log.page(0, 0) == EventPage(b"bbbbcccc", 2)
        log.append(b"d" * 99)
        assert await log.page(2, 0) == EventPage(b"d" * 99, 3)
        log.clear()
        assert space.used == 0
        assert (await log.page(2, 0)).gone
        log.end()
        assert (await log.page(3, 0)).ended

    run(story())


def test_logs_share_their_space() -> None:
    """A log that grows gives up its own front, never another's."""

    async def story() -> None:
        space = LogSpace(10)
        one, other = filled(b"aaaa", space=space), ResponseLog(space)
        for _ in range(5):
            other.append(b"bbbb")
        assert space.used <= 10
        assert (await one.page(-1, 0)).data == b"aaaa"
        assert await other.page(3, 0) == EventPage(b"bbbb", 4)

    run(story())


def test_finished_logs_make_room_first() -> None:
    """The oldest of them; readers find its events gone, and its end."""

    async def story() -> None:
        space = LogSpace(10)
        old, newer = filled(b"aaaa", space=space), filled(b"bbbb", space=space)
        old.end()
        newer.end()
        live = filled(b"cccc", space=space)
        assert (await old.page(-1, 0)).gone
        assert (await old.page(0, 0)).ended
        assert (await newer.page(-1, 0)).data == b"bbbb"
        live.append(b"dd")
        assert space.used == 10
        space.forget(newer)
        assert space.used == 6
        assert (await live.page(-1, 0)).data == b"ccccdd"

    run(story())


def test_pages_say_which_run_they_are_of() -> None:
    """A stream that began anew under the same name is another."""

    async def story() -> None:
        log = ResponseLog(LogSpace(), run=2)
        assert (await log.page(-1, 0)).run == 2
        log.append(b"a")
        assert (await log.page(-1, 0)).run == 2

    run(story())


def test_numbers_stay_true_however_much_is_dropped(
    monkeypatch: pytest.MonkeyPatch, rng: Random
) -> None:
    """Ten thousand events through a small log, compacted many times."""
    monkeypatch.setattr(response_log, "MAX_LOG_BYTES", 300)
    monkeypatch.setattr(response_log, "_COMPACT_FROM", 8)

    async def story() -> None:
        log = ResponseLog(LogSpace())
        for number in range(10_000):
            log.append(b"<%d>" % number)
            if rng.random() < 0.01:
                after = rng.randrange(max(number - 80, -1), number)
                page = await log.page(after, 0, 7)
                assert page.gone or page.data.startswith(b"<%d>" % (after + 1))
        assert log.count == 10_000
        assert len(log._events) < 1000

    run(story())
