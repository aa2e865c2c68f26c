"""Limits of requests, of tokens and of calls at once: of the host, a tenant, a session, a model.

What a limit is stands in ``pipeline.buckets``; it is kept by the host's quotas, exact over all
workers and outliving any of them.  The levels are asked from the narrowest to the widest, and a
refusal gives back what the levels before it took: whoever is over a limit of its own takes nothing
from what others share.

Of tokens the most that a call may cost is reserved when it comes in (its body by four bytes, and
the longest answer it asks for), and settled by what the backend reports at its end.  A call that
never came to a backend gets all of it back; of one whose use nobody reports the reservation stays.

Invariants: of one level all limits let a call in or none does, in one update; a call that is
refused leaves every count as it was; a call gives its places and the rest of its tokens back once.
A call that is run again after a worker's death was counted before: it only takes a place again.
Known weakness: between taking and giving back, microseconds, another call of the same tenant or
session may be refused.  A worker that dies keeps the tokens of its open calls reserved until they
drain, and in those microseconds what was taken.  At the cap of the quotas the tenant, session or
model not seen for longest begins anew.
"""

from __future__ import annotations

import math
from contextlib import suppress
from typing import ClassVar, Final

from tpo_mp.dialects.limit_lines import request_lines, token_lines
from tpo_mp.dialects.most_output import COUNTING, most_output
from tpo_mp.errors import RateLimited, Shed, TooLarge, TpoError
from tpo_mp.pipeline.allowances import CALLS, ONE_CALL, LocalAllowance
from tpo_mp.pipeline.buckets import Bucket, Excess, LimitSet
from tpo_mp.pipeline.endings import at_end
from tpo_mp.pipeline.limits import (
    LEVELS,
    OVERALL_NAME,
    LimitLevels,
    RateOptions,
    model_name,
    session_name,
    tenant_name,
)
from tpo_mp.ports import Counter, Env, Feature
from tpo_mp.types import NO_DEADLINE, Call, Dialect, Ending, Phase, Reply

BYTES_PER_TOKEN: Final = 4
_ALMOST: Final = 1e-6
MOST_WAYS: Final = 4096
MOST_LEASES: Final = 64
"""Allowances that may be out at once: giving each back costs the loop about 10 us."""


class Config(RateOptions, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is let in, exact over all workers; with no level given 100 per second, 20 at once."""


class RateLimit:
    """Lets a call in when each of its limits has room."""

    phase: ClassVar[Phase] = Phase.ADMIT

    def __init__(self, config: Config, env: Env) -> None:
        limits = LimitLevels(config)
        self._session, self._tenant, self._tiers = limits.session, limits.tenant, limits.tiers
        self._model, self._overall = limits.model, limits.overall
        levels = (self._session, self._tenant, self._model, self._overall, *self._tiers.values())
        concurrent = any(limits and limits.concurrent for limits in levels)
        self._unsaid = config.answer_tokens
        self._quotas, self._clock, self._timers = env.quotas, env.clock, env.timers
        self._allowances: dict[str, LocalAllowance] = {}
        self._ways: dict[tuple[str, str, str, str | None], _Way] = {}
        self._out: set[LocalAllowance] = set()
        self.deadline, self.filed_at = NO_DEADLINE, 0.0
        self._turn = 0
        self._refused: dict[str, Counter] = {
            level: env.metrics.counter(
                "tpo_rate_limited_total", "Calls refused by a limit, by its level.", level=level
            )
            for level in LEVELS
        }
        if concurrent:
            # A whole answer gives its places back before it is sent, so that who asks again
            # on reading it finds them free.
            self.after = _give_back_places

    def before(self, call: Call) -> None:
        """Count the call; raises ``RateLimited``, having counted it nowhere."""
        session = call.session if self._session is not None else None
        key = (call.tenant, call.tier, call.model, session)
        way = self._ways.get(key)
        if way is None:
            way = self._find_way(key)
        tokens = _reserve(call, way, self._unsaid) if way.counted else 0
        if call.rerun:
            self._come_again(way)
        else:
            self._come_in(call, way, tokens)
            if way.turn != self._turn:
                way.turn = self._turn
                way.lines.clear()
            lines = way.lines.get(call.dialect)
            if lines is None:
                lines = way.lines[call.dialect] = _left(way, call.dialect)
            call.limit_lines += lines
        if tokens or way.limited:
            at_end(call, _Stay(self, way, tokens))

    def _come_in(self, call: Call, way: _Way, tokens: int) -> None:
        place = -1
        for allowance in way.all:
            place += 1
            cost = tokens if allowance.counts_tokens else 0
            word = allowance.word
            if word & CALLS and word >> 24 >= cost:  # from the lease
                allowance.word = word = word - (cost << 24 | ONE_CALL)
                allowance.unspent[0] = word
                continue
            now = self._clock()
            way.turn = -1
            try:
                leases = len(self._out) < MOST_LEASES or allowance in self._out
                excess = allowance.take(now, cost, lease=leases)
                if excess is None:
                    if allowance.leased:
                        self._note_out(allowance)
                    continue
                self._refused[allowance.level].inc()
                raise _refusal(allowance, excess, cost, call)
            except TpoError:
                for taken in way.all[:place]:
                    with suppress(Shed):  # what cannot be given back drains
                        taken.undo(now, tokens if taken.counts_tokens else 0)
                raise

    def _come_again(self, way: _Way) -> None:
        for allowance in way.limited:
            allowance.hold(self._clock())

    def _find_way(self, key: tuple[str, str, str, str | None]) -> _Way:
        """Where a call counts, from the narrowest level to the widest."""
        tenant, tier, model, session = key
        found: list[LocalAllowance] = []

        def add(level: str, name: str, limits: LimitSet | None) -> None:
            if limits is None:
                return
            allowance = self._allowances.get(name)
            if allowance is None or allowance.limits is not limits:
                allowance = LocalAllowance(
                    self._quotas, level, name, limits, crowd=level != "global"
                )
                self._allowances[name] = allowance
            found.append(allowance)

        if len(self._ways) >= MOST_WAYS:
            self._forget()
        if session:
            add("session", session_name(tenant, session), self._session)
        add("tenant", tenant_name(tenant), self._tiers.get(tier, self._tenant))
        add("model", model_name(model), self._model)
        add("global", OVERALL_NAME, self._overall)
        way = self._ways[key] = _Way(tuple(found))
        return way

    def _forget(self) -> None:
        """Make room; what is out stays, so that a name has one lease here and no two."""
        self._ways.clear()
        self._allowances = {a.name: a for a in self._out}

    # -- telling the host ---------------------------------------------------------------------

    def _note_out(self, allowance: LocalAllowance) -> None:
        """Have an allowance synced at the next turn of the timers."""
        self._out.add(allowance)
        if self.deadline == NO_DEADLINE:
            self.deadline = now = self._clock()
            self._timers.add(self, now)

    def expire(self) -> None:
        """Sync what is out; what cannot be synced now is, next time."""
        out, self._out = self._out, set()
        self._turn += 1
        now = self._clock()
        for allowance in out:
            try:
                if allowance.out:
                    allowance.sync(now)
            except Shed:
                self._note_out(allowance)

    def tell(self, allowance: LocalAllowance) -> None:
        """A call gave something back where no lease is out: the host hears of it now."""
        try:
            allowance.sync(self._clock())
        except Shed:
            self._note_out(allowance)


class _Way:
    """Where calls of one tenant, tier, model and session count, narrowest level first.

    ``limited`` are those of them with places, ``counted`` those with tokens, of which ``room`` is
    the most that a call may ever cost.  ``lines`` say what is left of the limits, for calls that
    come before the host is asked again; of an older ``turn`` of the timers they are out of date.
    """

    __slots__ = ("all", "counted", "limited", "lines", "room", "turn")

    def __init__(self, found: tuple[LocalAllowance, ...]) -> None:
        self.all = found
        self.limited = tuple(a for a in found if a.limits.concurrent)
        self.counted = tuple(a for a in found if a.counts_tokens)
        rooms = [a.limits.tokens.room for a in found if a.limits.tokens is not None]
        self.room = min(rooms, default=0)
        self.lines: dict[Dialect, bytes] = {}
        self.turn = -1


class _Stay:
    """What one call holds until it ends."""

    __slots__ = ("_limits", "_places", "_reserved", "_way")

    def __init__(self, limits: RateLimit, way: _Way, reserved: int) -> None:
        self._limits = limits
        self._way = way
        self._places = len(way.limited)
        self._reserved = reserved

    def leave(self) -> None:
        """Give the places back."""
        if self._places:
            self._places = 0
            for allowance in self._way.limited:
                allowance.ended += 1
                if not allowance.leased:
                    self._limits.tell(allowance)

    def __call__(self, ended: Ending) -> None:
        """Settle what the call used."""
        back = 0
        if not ended.attempts:  # an answer that no backend gave for this call used nothing
            back = self._reserved
        elif ended.prompt >= 0 or ended.completion >= 0:
            back = self._reserved - max(ended.prompt, 0) - max(ended.completion, 0)
        if back and self._reserved:
            for allowance in self._way.counted:
                allowance.back += back
                if not (allowance.leased or (self._places and allowance.limits.concurrent)):
                    self._limits.tell(allowance)
        self.leave()


def _reserve(call: Call, way: _Way, unsaid: int) -> int:
    """Tokens a call may cost; raises ``TooLarge`` when no limit could ever let it in."""
    if call.dialect in COUNTING:
        return 0
    room = way.room
    prompt = -(-len(call.body) // BYTES_PER_TOKEN)
    answer = most_output(call.dialect, call.body, -1)
    if answer < 0:  # nobody asked for so much: it is what there may be
        answer = max(min(unsaid, room - prompt), 0)
    if prompt + answer > room:
        raise TooLarge(
            f"this request may cost {prompt + answer} tokens, and {room} per minute is all "
            "that a limit ever lets in; shorten it or ask for fewer tokens",
            reason="over_token_limit",
            param="max_tokens",
        )
    return prompt + answer


def _give_back_places(call: Call, reply: Reply) -> None:
    if reply.stream is None:
        for told in call.endings or ():
            if isinstance(told, _Stay):
                told.leave()


def _refusal(allowance: LocalAllowance, excess: Excess, tokens: int, call: Call) -> RateLimited:
    bucket, wait_s, level = excess.bucket, excess.wait_s, allowance.level
    if bucket is None:
        return RateLimited(
            f"the {level} limit of {allowance.limits.concurrent} requests at once is reached",
            reason="too_many_at_once",
            retry_after_s=wait_s,
        )
    burst = f", {bucket.room} at once," if bucket.room != bucket.limit else ""
    asks = f" (this request may cost {tokens})" if bucket.what == "tokens" else ""
    return RateLimited(
        f"the {level} limit of {bucket.limit} {bucket.what} per {bucket.period}{burst} is reached"
        f"{asks}; try again in {math.ceil(wait_s * 10) / 10:g} s",
        reason="rate_limited",
        retry_after_s=wait_s,
        lines=_lines(call.dialect, bucket, excess.used),
    )


def _left(way: _Way, dialect: Dialect) -> bytes:
    """The headers of the limits with the least room, of requests and of tokens."""
    lines = b""
    for tokens in (False, True):
        known = [room for a in way.all if (room := a.room(tokens=tokens)) is not None]
        if known:
            lines += _lines(dialect, *min(known, key=lambda room: room[0].room - room[1]))
    return lines


def _lines(dialect: Dialect, bucket: Bucket, used: float) -> bytes:
    """The headers of one limit."""
    left, whole_in_s = max(int(bucket.room - used + _ALMOST), 0), used / bucket.per_s
    make = token_lines if bucket.what == "tokens" else request_lines
    return make(dialect, bucket.limit, left, whole_in_s)


FEATURE = Feature(Config, RateLimit)
