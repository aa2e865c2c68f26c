"""The feeds of a process: found by their own tenant only, kept for a while, followed by session."""

from __future__ import annotations

import asyncio
from time import monotonic
from typing import Any

import pytest

from tests.support.fake_env import make_call
from tests.support.fake_gateway import fake_feeds
from tests.unit.pipeline.test_feed import Ear
from tpo_mp.errors import InvalidRequest, NotFound, Shed
from tpo_mp.pipeline import feeds as module
from tpo_mp.pipeline.feed import UNNUMBERED, Feed, Listener
from tpo_mp.pipeline.feeds import Feeds, event_id, parse_event_id
from tpo_mp.shm.callid import CallIds

IDS = CallIds(1, 1)


class NamedEar(Ear):
    """Hears calls of any name."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[str] = []

    def take(self, call_id: str, number: int, name: str, data: bytes) -> None:
        """Take one event."""
        self.calls.append(call_id)
        super().take("call-1", number, name, data)


def begin(feeds: Feeds, session: str | None = "s", tenant: str = "") -> Feed:
    """Let a call begin."""
    call = make_call(b"", tenant=tenant)
    call.id = IDS.new()
    feed = Feed(call, session, deserted=lambda: None)
    feeds.open(feed)
    feed.start(None)
    return feed


def follow(
    feeds: Feeds, call_id: str, listener: Listener, tenant: str = "", after: int = -1
) -> Any:
    """Attach to a call."""
    return asyncio.run(feeds.follow(call_id, listener, tenant, after))


def test_running_and_finished_calls_are_found() -> None:
    """By id; others are not."""
    feeds, ear = fake_feeds(), NamedEar()
    feed = begin(feeds)
    assert follow(feeds, feed.id, ear)
    feed.token("a")
    feed.finish("done", b"{}")
    late = NamedEar()
    assert follow(feeds, feed.id, late)
    assert ear.heard == late.heard
    assert follow(feeds, IDS.new(), NamedEar()) is False


def test_other_tenants_find_nothing() -> None:
    """Neither by id nor by session."""
    feeds, ear = fake_feeds(), NamedEar()
    mine = begin(feeds, tenant="mine")
    with pytest.raises(NotFound):
        follow(feeds, mine.id, ear, "theirs")
    feeds.follow_session("s", ear, "theirs")
    begin(feeds, tenant="mine")
    assert ear.calls == []
    theirs = begin(feeds, tenant="theirs")
    assert set(ear.calls) == {theirs.id}


def test_events_that_never_were_cannot_be_resumed_from() -> None:
    """The next one can."""
    feeds = fake_feeds()
    feed = begin(feeds)
    feed.token("a")
    assert follow(feeds, feed.id, NamedEar(), after=1)
    with pytest.raises(InvalidRequest):
        follow(feeds, feed.id, NamedEar(), after=2)


def test_session_is_followed_through_all_its_calls() -> None:
    """Those running, those that come, and no other's; until it is left."""
    feeds, ear = fake_feeds(), NamedEar()
    running, other = begin(feeds), begin(feeds, "t")
    feeds.follow_session("s", ear, "")
    begin(feeds, None)
    second = begin(feeds)
    running.finish("done", b"{}")
    other.finish("done", b"{}")
    second.token("x")
    assert set(ear.calls) == {running.id, second.id}
    feeds.unfollow_session("s", ear, "")
    n = len(ear.calls)
    begin(feeds)
    second.token("y")
    assert len(ear.calls) == n
    assert feeds.followers == {}


def test_finished_feeds_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    """By age, by number and by size, the oldest first."""
    feeds = fake_feeds(keep_s=5)
    old = begin(feeds)
    before = monotonic()
    old.finish("done", b"{}")
    feeds.tick(before + 4)
    assert old.id in feeds.finished
    feeds.tick(monotonic() + 6)
    assert not feeds.finished
    monkeypatch.setattr(module, "MAX_FINISHED", 2)
    three = [begin(feeds) for _ in range(3)]
    for feed in three:
        feed.finish("done", b"{}")
    assert list(feeds.finished) == [feed.id for feed in three[1:]]
    monkeypatch.setattr(module, "MAX_FINISHED_BYTES", 100)
    large = begin(feeds)
    large.finish("done", b"x" * 90)
    assert list(feeds.finished) == [three[2].id, large.id]
    assert feeds.running == {}


def test_followers_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who leaves makes room."""
    monkeypatch.setattr(module, "MAX_FOLLOWERS", 1)
    feeds, first, second = fake_feeds(), NamedEar(), NamedEar()
    feeds.follow_session("s", first, "")
    with pytest.raises(Shed):
        feeds.follow_session("s", second, "")
    feeds.unfollow_session("s", first, "")
    feeds.follow_session("s", second, "")


def test_event_ids_are_read_back() -> None:
    """What we write; an event without a number has none."""
    call_id = IDS.new()
    line = event_id(call_id, 17).decode()
    assert parse_event_id(line.removeprefix("id: ").strip()) == (call_id, 17)
    assert event_id(call_id, UNNUMBERED) == b""


@pytest.mark.parametrize(
    "raw", ["", "7", "x:1", "{id}", "{id}:", "{id}:-1", "{id}:1e3", "{id}:٣", "{id}:1:2",
            "{id}:9999999999", " {id}:1", "00000000-0000-4000-8000-000000000000:1"],
)  # fmt: skip
def test_other_event_ids_are_refused(raw: str) -> None:
    """Naming the header."""
    with pytest.raises(InvalidRequest) as refused:
        parse_event_id(raw.replace("{id}", IDS.new()))
    assert refused.value.param == "last-event-id"
