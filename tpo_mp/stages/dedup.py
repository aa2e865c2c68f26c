"""Identical calls at the same time become one upstream call, whichever worker they come to.

Calls with one key (``pipeline.fingerprint``: tenant, model, the whole body) are brought to the one
shard where that key lives, and share what the first of them gets (``pipeline.flight``).  No shared
row says who leads: that shard's own map does, and when it dies all calls of the key are brought to
the same next one.

By default only calls that are certain to get the same answer share one: embeddings, temperature 0,
a seed.

Invariants: tenants, upstream credentials and priorities never share; ``X-TPO-Cache: no-store`` and
``no-cache`` ask by themselves; a call that cannot share pays one look at its body.
Known weakness: while a shard is replaced, or the configuration is, one key may have two upstream
calls.
"""

from __future__ import annotations

from collections.abc import Awaitable
from functools import partial
from typing import Annotated, ClassVar

from msgspec import Meta, Struct

from tpo_mp.pipeline.fingerprint import Match, fingerprint
from tpo_mp.pipeline.flights import Flights
from tpo_mp.ports import Env, Feature, Proceed
from tpo_mp.types import Call, Phase, Reply


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


class Dedup:
    """Lets a call join one that is under way."""

    phase: ClassVar[Phase] = Phase.INFERENCE

    def __init__(self, config: Config, env: Env) -> None:
        self._match = config.match
        self._enabled = config.enabled
        self._peers = env.peers
        self._epoch = env.epoch
        self._flights = Flights(env, config.max_entries)
        self._inner: Proceed

    def inside(self, proceed: Proceed) -> None:
        """Learn what lies deeper: calls that come from another shard go on there."""
        self._inner = proceed

    def __call__(self, call: Call, proceed: Proceed, /) -> Awaitable[Reply]:
        """Ask, or wait for who asks."""
        found = fingerprint(call, self._match) if self._enabled and not call.reuse else None
        if found is None:
            return proceed(call)
        key = found + bytes((call.stream, call.usage_wanted, call.priority))
        sure: bool = call.fingerprint.sure
        here = partial(self._flights.join, key, proceed=proceed)
        return self._peers.bring(call, key, self._epoch, sure, here) or here(call)

    def join(self, key: bytes, call: Call) -> Awaitable[Reply]:
        """Serve a call that another shard brought."""
        return self._flights.join(key, call, self._inner)


FEATURE = Feature(Config, Dedup)
