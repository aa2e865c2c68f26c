"""The feeds of one process: found by request id or session, kept for a while when finished.

Invariants: a feed is found only by its own tenant, to others it does not exist; at most
``MAX_FINISHED`` finished feeds of ``MAX_FINISHED_BYTES`` are kept, the oldest go first; at most
``MAX_FOLLOWERS`` listeners follow sessions here.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from time import monotonic
from typing import TYPE_CHECKING

from tpo_mp.config.sections import StreamsSection
from tpo_mp.errors import InvalidRequest, NotFound, Shed
from tpo_mp.ports import Metrics, Timers
from tpo_mp.shm.callid import CallIds

from .feed import UNNUMBERED, Feed, Listener

if TYPE_CHECKING:
    from .sse_listener import SseListener

MAX_FINISHED = 1024
MAX_FINISHED_BYTES = 32 << 20
MAX_FOLLOWERS = 4096
ACTIVE = "tpo_streams_active"
COMPLETED = "tpo_streams_completed_total"
TOKENS = "tpo_stream_tokens_total"
_EVENT_ID = re.compile(r"([0-9a-f-]{36}):([0-9]{1,9})")

Key = tuple[str, str]


class Feeds:
    """All feeds of this process, and who follows a session."""

    def __init__(self, *, settings: StreamsSection, timers: Timers, metrics: Metrics) -> None:
        self.settings = settings
        self.timers = timers
        self.running: dict[str, Feed] = {}
        self.finished: OrderedDict[str, Feed] = OrderedDict()
        self.followers: dict[Key, list[Listener]] = {}
        self.clients: set[SseListener] = set()
        self._n_followers = 0
        self._finished_bytes = 0
        self._active = metrics.gauge(ACTIVE, "Native streams running now.")
        self._completed = metrics.counter(COMPLETED, "Native streams that reached done.")
        self._tokens = metrics.counter(TOKENS, "Token events of finished native streams.")

    # -- from the calls -----------------------------------------------------------------------

    def open(self, feed: Feed) -> None:
        """A call begins; whoever follows its session hears it."""
        if feed.final is not None:
            self._keep(feed)
        else:
            feed.on_final = self._closed
            self.running[feed.id] = feed
            self._active.set(len(self.running))
        if self.followers and feed.session is not None:
            for listener in self.followers.get((feed.tenant, feed.session), ()):
                feed.add(listener)

    def _closed(self, feed: Feed) -> None:
        self.running.pop(feed.id, None)
        self._active.set(len(self.running))
        self._keep(feed)

    def _keep(self, feed: Feed) -> None:
        assert feed.final is not None
        self._completed.inc(feed.final[0] == "done")
        self._tokens.inc(len(feed.texts))
        now = monotonic()
        feed.kept_until = now + self.settings.keep_s
        self.finished[feed.id] = feed
        self._finished_bytes += feed.size
        self.tick(now)

    def tick(self, now: float) -> None:
        """Forget finished feeds that are old or too many."""
        finished = self.finished
        while finished:
            oldest = next(iter(finished.values()))
            if (
                len(finished) <= MAX_FINISHED
                and self._finished_bytes <= MAX_FINISHED_BYTES
                and oldest.kept_until > now
            ):
                return
            del finished[oldest.id]
            self._finished_bytes -= oldest.size

    # -- following ----------------------------------------------------------------------------

    def find(self, call_id: str, tenant: str, after: int) -> Feed | None:
        """The feed of a call, if it has one here.

        Raises ``NotFound`` for another tenant's, ``InvalidRequest`` for events it never had.
        """
        feed = self.running.get(call_id) or self.finished.get(call_id)
        if feed is None:
            return None
        if feed.tenant != tenant:
            raise NotFound("no such request", reason="request_not_found")
        if after >= feed.end:
            raise InvalidRequest("that stream has no such event yet", param="last-event-id")
        return feed

    async def follow(self, call_id: str, listener: Listener, tenant: str, after: int) -> bool:
        """Let ``listener`` have a call's events; False when no feed of it is kept."""
        feed = self.find(call_id, tenant, after)
        if feed is None:
            return False
        feed.add(listener, after)
        return True

    def follow_session(self, session: str, listener: Listener, tenant: str) -> None:
        """Let ``listener`` have the events of all calls of a session, those running first."""
        if self._n_followers >= MAX_FOLLOWERS:
            raise Shed("too many follow sessions", reason="too_many_listeners", retry_after_s=5)
        self._n_followers += 1
        self.followers.setdefault((tenant, session), []).append(listener)
        for feed in list(self.running.values()):
            if feed.session == session and feed.tenant == tenant:
                feed.add(listener)

    async def heard(self, listener: Listener) -> None:
        """Wait until every shard knows that ``listener`` follows its session; for a moment at most.

        Who asks something of that session afterwards can count on being heard, wherever it runs.
        """

    def unfollow_session(self, session: str, listener: Listener, tenant: str) -> None:
        """The listener leaves the session, and the calls it heard of."""
        following = self.followers.get((tenant, session), [])
        if listener in following:
            following.remove(listener)
            self._n_followers -= 1
            if not following:
                del self.followers[tenant, session]
        listener.leave()

    def drain(self) -> None:
        """End what would never end by itself: streams of sessions."""
        for client in list(self.clients):
            client.drain()


def parse_event_id(raw: str) -> tuple[str, int]:
    """Call id and number of an event id; raises ``InvalidRequest``."""
    found = _EVENT_ID.fullmatch(raw)
    if found is None or CallIds.parse(found[1]) is None:
        raise InvalidRequest("not an event id of this gateway", param="last-event-id")
    return found[1], int(found[2])


def event_id(call_id: str, number: int) -> bytes:
    """What ``parse_event_id`` reads."""
    return b"" if number == UNNUMBERED else b"id: %b:%d\n" % (call_id.encode(), number)
