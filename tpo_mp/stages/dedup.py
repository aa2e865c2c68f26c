"""Identical calls at the same time become one upstream call, whichever worker they come to.

Calls with one key (``pipeline.fingerprint``: tenant, model, the whole body) are brought to the one
shard where that key lives, which is the first that was asked, and share what the first of them gets
(``pipeline.flight``).  When that shard dies, the first of those that waited for it begins anew.

An answer that the stage ``cache`` keeps, when that lies directly outside, is kept before its key is
given up.  So who finds that a key was given up a moment ago, or is brought to where it is no more,
looks there again before it asks.

By default only calls that are certain to get the same answer share one: embeddings, temperature 0,
a seed.

With ``sdk_retries`` a call of an SDK that tries again joins the one that it gave up or lost, even
when its answer is not certain: the same key of ours and the same body, and the SDK says that it
asks again.  First tries of such calls share nothing.

Invariants: tenants, upstream credentials and priorities never share; ``X-TPO-Cache: no-store`` and
``no-cache`` ask by themselves; a call that cannot share pays one look at its body.
Known weakness: while a shard is replaced, or the configuration is, one key may have two upstream
calls.
"""

from __future__ import annotations

from collections.abc import Awaitable
from functools import partial
from typing import Annotated, ClassVar, Final

from msgspec import Meta, Struct

from tpo_mp.pipeline.fingerprint import Match, fingerprint
from tpo_mp.pipeline.flights import Flights
from tpo_mp.pipeline.promise import Promise
from tpo_mp.ports import AnswerKeeper, Env, Feature, Proceed
from tpo_mp.types import Call, Phase, Reply

_OF_ONE_CALL: Final = b"\0one"
"""Ends the keys of calls that only their own next try may join."""


class Config(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How identical calls at the same time share one upstream call."""

    enabled: Annotated[bool, Meta(
        description="Whether they do.")] = True  # fmt: skip
    match: Annotated[Match, Meta(
        description="Which calls may share an answer: `deterministic`, those that are certain to "
        "get the same one (embeddings, temperature 0, a seed), or `all` with equal bodies.",
    )] = Match.DETERMINISTIC  # fmt: skip
    max_entries: Annotated[int, Meta(ge=1, le=1_000_000,
        description="Upstream calls of one worker that others can join; beyond it calls are asked "
        "by themselves.")] = 10_000  # fmt: skip
    linger_s: Annotated[float, Meta(ge=0, le=60,
        description="How long an upstream call goes on after its last client left because its "
        "SDK waits no longer, so that its next try joins it. 0: not at all.")] = 3.0  # fmt: skip
    sdk_retries: Annotated[bool, Meta(
        description="Whether a call that an SDK tries again joins its first try also when its "
        "answer is not certain to be the same.")] = False  # fmt: skip


class Dedup:
    """Lets a call join one that is under way."""

    phase: ClassVar[Phase] = Phase.INFERENCE

    def __init__(self, config: Config, env: Env) -> None:
        self._match = config.match
        self._enabled = config.enabled
        self._peers = env.peers
        self._epoch = env.epoch
        self._flights = Flights(env, config.max_entries, config.linger_s)
        self._under_way = self._flights.under_way
        self._sdk_retries = config.enabled and config.sdk_retries
        self._keeper: AnswerKeeper | None = None
        self._ask: Proceed

    def behind(self, stage: object) -> None:
        """Have what is asked kept by the stage outside, if it keeps answers."""
        if self._enabled and isinstance(stage, AnswerKeeper):
            self._keeper = stage
            stage.entrust()

    def inside(self, proceed: Proceed) -> None:
        """Learn what lies deeper: calls that come from another shard go on there."""
        keeper = self._keeper
        if keeper is None:
            self._ask = proceed
        else:
            self._ask = lambda call: keeper.keeping(call, proceed(call))

    def __call__(self, call: Call, proceed: Proceed, /) -> Awaitable[Reply]:
        """Ask, or wait for who asks."""
        found = fingerprint(call, self._match) if self._enabled and not call.reuse else None
        if found is not None:
            key = found + bytes((call.stream, call.usage_wanted, call.priority))
        elif not self._sdk_retries or call.sdk_try < 0 or call.reuse:
            return self._ask(call) if call.cache else proceed(call)
        else:
            found = fingerprint(call, Match.ALL)
            if found is None:
                return self._ask(call) if call.cache else proceed(call)
            form = bytes((call.stream, call.usage_wanted, call.priority))
            key = found + form + call.key_id.encode() + _OF_ONE_CALL
        if key not in self._under_way:
            here = partial(self.join, key)
            away = self._peers.bring(call, key, self._epoch, call.fingerprint.sure, here)
            if away is not None:
                return away
        return self._join(key, call)

    def join(self, key: bytes, call: Call) -> Awaitable[Reply]:
        """Serve a call here, where its key lives, or lived until a moment ago."""
        if key not in self._under_way:
            self._peers.lead(key)  # first: an answer that comes later than this is our own
            reply = None if self._keeper is None else self._keeper.again(call)
            if reply is not None:
                self._peers.leave(key)
                answered: Promise[Reply] = Promise()
                answered.resolve(reply)
                return answered
        return self._join(key, call)

    def _join(self, key: bytes, call: Call) -> Awaitable[Reply]:
        afresh = call.sdk_try == 0 and key.endswith(_OF_ONE_CALL)
        return self._flights.join(key, call, self._ask, afresh)


FEATURE = Feature(Config, Dedup)
