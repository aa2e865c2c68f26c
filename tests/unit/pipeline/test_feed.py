"""One call's events: replayed to whoever comes late, at the pace of the fastest listener."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.support.fake_env import make_call
from tests.support.fake_net import HeldStream
from tpo_mp.errors import Shed, TooLarge
from tpo_mp.pipeline import feed as module
from tpo_mp.pipeline.feed import MAX_LAG, MAX_LISTENERS, UNNUMBERED, Feed, Listener


class Ear(Listener):
    """Remembers what it took; full after ``room`` events."""

    def __init__(self, room: int = 1 << 30) -> None:
        super().__init__()
        self.room = room
        self.heard: list[tuple[int, str, dict[str, Any]]] = []

    def take(self, call_id: str, number: int, name: str, data: bytes) -> None:
        """Take one event."""
        assert call_id == "call-1"
        self.heard.append((number, name, json.loads(data)))
        if len(self.heard) >= self.room:
            self.block()

    @property
    def numbers(self) -> list[int]:
        """The numbers of what it heard."""
        return [number for number, _, _ in self.heard]


class Scene:
    """A feed on a call's stream."""

    def __init__(self, *, free: bool = False) -> None:
        self.deserted = 0
        self.stream = HeldStream()
        self.feed = Feed(make_call(b""), "s", free=free, deserted=self._desert)

    def _desert(self) -> None:
        self.deserted += 1

    def say(self, *texts: str) -> None:
        """Go on, from the start if need be."""
        if not self.feed.started:
            self.feed.start(self.stream)
        for text in texts:
            self.feed.token(text)

    def done(self) -> None:
        """Finish."""
        self.feed.finish("done", b'{"text":"all"}')


@pytest.mark.parametrize("late", range(5))
def test_whoever_comes_late_hears_the_same(late: int) -> None:
    """From the first event to the last, whenever they come."""
    scene, first, second = Scene(), Ear(), Ear()
    scene.feed.add(first)
    steps = [scene.say, lambda: scene.say("a"), lambda: scene.say("b"), scene.done]
    for at, step in enumerate([*steps, lambda: None]):
        if at == late:
            scene.feed.add(second)
        step()
    assert first.heard == second.heard
    assert first.numbers == [0, 1, 2, 3]
    assert first.heard[0][2] == {"request_id": "call-1", "session_id": "s"}
    assert first.heard[2][2] == {"request_id": "call-1", "index": 1, "text": "b"}
    assert not first.readers


def test_listener_resumes_after_a_number() -> None:
    """And hears nothing twice."""
    scene, ear = Scene(), Ear()
    scene.say("a", "b", "c")
    scene.feed.add(ear, 1)
    scene.done()
    assert ear.numbers == [2, 3, 4]


def test_call_that_failed_before_it_began_has_one_event() -> None:
    """No start, just the end."""
    scene, early, late = Scene(), Ear(), Ear()
    scene.feed.add(early)
    scene.feed.finish("error", b"{}")
    scene.feed.add(late)
    assert [name for _, name, _ in early.heard] == ["error"]
    assert early.heard == late.heard


def test_upstream_waits_only_for_the_fastest() -> None:
    """It is paused while all are blocked, and goes on as soon as one is not."""
    scene, slow, fast = Scene(), Ear(2), Ear()
    scene.feed.add(slow)
    scene.say("a", "b")
    assert scene.stream.told == ["pause"]
    scene.feed.add(fast)
    assert scene.stream.told == ["pause", "resume"]
    scene.say("c")
    assert fast.numbers == [0, 1, 2, 3]
    assert slow.numbers == [0, 1]
    fast.block()
    assert scene.stream.told[-1] == "pause"
    slow.room = 1 << 30
    slow.unblock()
    assert slow.numbers == [0, 1, 2, 3]
    assert scene.stream.told[-1] == "resume"


def test_free_call_waits_for_nobody() -> None:
    """Its result is fetched later; a blocked listener does not hold it up."""
    scene, ear = Scene(free=True), Ear(1)
    scene.feed.add(ear)
    scene.say("a", "b")
    assert scene.stream.told == []


def test_listener_that_lags_is_cut_and_the_others_go_on() -> None:
    """With an error that has no number, so that it can resume from what it has."""
    scene, slow, fast = Scene(), Ear(1), Ear()
    scene.feed.add(slow)
    scene.feed.add(fast)
    scene.say(*["x"] * (MAX_LAG + 5))
    assert [(n, name) for n, name, _ in slow.heard] == [(0, "start"), (UNNUMBERED, "error")]
    assert slow.heard[-1][2]["code"] == "slow_listener"
    assert not slow.readers
    assert len(fast.heard) == MAX_LAG + 6
    assert scene.deserted == 0


def test_a_long_prefix_is_no_lag() -> None:
    """Who comes late is behind through no fault of its own."""
    scene, fast, late = Scene(), Ear(), Ear(3)
    scene.feed.add(fast)
    scene.say(*["x"] * (2 * MAX_LAG))
    scene.feed.add(late)
    scene.say(*["x"] * (MAX_LAG - 10))
    assert late.readers
    late.room = 1 << 30
    late.unblock()
    assert late.numbers == list(range(3 * MAX_LAG - 10 + 1))


def test_last_listener_to_leave_is_told_of() -> None:
    """Not while another listens, not after the end."""
    scene, one, two = Scene(), Ear(), Ear()
    scene.feed.add(one)
    scene.feed.add(two)
    scene.say("a")
    one.leave()
    assert scene.deserted == 0
    two.leave()
    assert scene.deserted == 1
    ended, ear = Scene(), Ear()
    ended.feed.add(ear)
    ended.done()
    ear.leave()
    assert ended.deserted == 0


def test_blocked_listener_hears_the_end_when_it_can() -> None:
    """Even though the call is long over."""
    scene, ear = Scene(), Ear(1)
    scene.feed.add(ear)
    scene.say("a")
    scene.done()
    assert ear.numbers == [0]
    ear.room = 1 << 30
    ear.unblock()
    assert ear.numbers == [0, 1, 2]
    assert not ear.readers


def test_nothing_follows_the_end() -> None:
    """A second final event is ignored."""
    scene, ear = Scene(), Ear()
    scene.feed.add(ear)
    scene.say("a")
    scene.done()
    scene.feed.finish("error", b"{}")
    assert [name for _, name, _ in ear.heard] == ["start", "token", "done"]


def test_listeners_and_text_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Too many are shed; too much is the upstream's failure."""
    scene = Scene()
    for _ in range(MAX_LISTENERS):
        scene.feed.add(Ear())
    with pytest.raises(Shed):
        scene.feed.add(Ear())
    monkeypatch.setattr(module, "MAX_TEXT_BYTES", 10)
    with pytest.raises(TooLarge):
        scene.say("12345", "123456")
