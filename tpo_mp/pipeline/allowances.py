"""What one process may let in of one limited name: counted at the host's quota, or from a lease.

Far from a limit a process takes up to 256 calls at once and spends them without asking; near it, it
asks for each.  ``sync`` gives back what is left of a lease, the places of calls that
ended since, and what they used less (or more) than they had reserved.  The owner syncs every
allowance that is ``out``, at the next turn of the timers.

Invariants: after each spending the unspent word says what is left, before the call comes in;
an update that fails changes nothing here either.
"""

from __future__ import annotations

from tpo_mp.ports import Quotas
from tpo_mp.types import Quota

from .buckets import REFUSED, Bucket, Excess, LimitSet, ahead, drain, excess, put

ONE_CALL = 1 << 8
"""A call, as the unspent word counts; its tokens are ``tokens << 24``."""
CALLS = 0xFFFF << 8
"""Where the word has the calls that are left."""


class LocalAllowance:
    """One limited name in one process; ``word`` is what its lease still has, as in ``unspent``.

    Whoever lets a call in from the lease takes it out of ``word`` and then stores that in
    ``unspent``; ``word`` must have a call left and its tokens.
    """

    __slots__ = (
        "_crowd", "_quotas", "back", "counts_tokens", "ended", "leased", "level", "limits", "name",
        "unspent", "used", "word",
    )  # fmt: skip

    def __init__(
        self, quotas: Quotas, level: str, name: str, limits: LimitSet, *, crowd: bool
    ) -> None:
        self._quotas = quotas
        self._crowd = crowd
        self.level = level
        self.name = name
        self.limits = limits
        self.counts_tokens = limits.tokens is not None
        self.leased = self.word = 0
        self.unspent: memoryview[int] | list[int] = [0]
        self.ended = self.back = 0
        self.used: tuple[float, ...] = ()
        """Each bucket's use when it was asked last, without what is held in advance."""

    @property
    def out(self) -> bool:
        """Whether the host must hear of something."""
        return bool(self.leased or self.ended or self.back)

    def take(self, now: float, tokens: int, *, lease: bool) -> Excess | None:
        """Let one call in at the host's quota, or answer why not; ``lease``: more may be taken."""
        limits, sharers = self.limits, self._quotas.sharers

        def change(quota: Quota) -> tuple[Excess | None, int, Quota]:
            foreign = not self._settle(quota, now)
            over = excess(quota, limits, tokens)
            if over is not None:
                quota.cells[REFUSED] += 1
                return over, 0, quota
            calls = 1 if foreign or not lease else ahead(quota, limits, tokens, sharers)
            put(quota, limits, calls, calls * tokens)
            if calls > 1:
                quota.lease(calls - 1, (calls - 1) * tokens)
            return None, calls - 1, quota

        over, more, quota = self._quotas.update(self.name, change, crowd=self._crowd)
        self._settled(quota, more, more * tokens)
        if more:
            self.word = more * tokens << 24 | more << 8 | quota.number
            self.unspent[0] = self.word
        return over

    def undo(self, now: float, tokens: int) -> None:
        """A wider limit refused the call: it was never here."""
        if (self.word >> 8 & 0xFFFF) < self.leased:
            self.word += tokens << 24 | ONE_CALL
            self.unspent[0] = self.word
            return

        def change(quota: Quota) -> Quota:
            self._settle(quota, now)
            put(quota, self.limits, -1, -tokens)
            return quota

        self._settled(self._quotas.update(self.name, change, crowd=self._crowd), 0, 0)

    def hold(self, now: float) -> None:
        """Give a call that was counted before another place, whatever the limit."""

        def change(quota: Quota) -> Quota:
            self._settle(quota, now)
            quota.held += 1
            return quota

        self._settled(self._quotas.update(self.name, change, crowd=self._crowd), 0, 0)

    def sync(self, now: float) -> None:
        """Tell the host everything."""

        def change(quota: Quota) -> Quota:
            self._settle(quota, now)
            return quota

        self._settled(self._quotas.update(self.name, change, crowd=self._crowd), 0, 0)

    def room(self, *, tokens: bool) -> tuple[Bucket, float] | None:
        """The bucket of requests, or of tokens, with the least room when it was asked, and use."""
        found: tuple[Bucket, float] | None = None
        for bucket, used in zip(self.limits.buckets, self.used, strict=False):
            if (bucket.what == "tokens") is tokens and (
                found is None or bucket.room - used < found[0].room - found[1]
            ):
                found = bucket, used
        return found

    def _settle(self, quota: Quota, now: float) -> bool:
        """Drain, and bring in what happened here; false when the lease there is not ours."""
        drain(quota, self.limits, now)
        ours = bool(self.leased)
        if ours:
            put(quota, self.limits, -(self.word >> 8 & 0xFFFF), -(self.word >> 24))
            quota.lease(0, 0)
        if self.back:
            put(quota, self.limits, 0, -self.back)
        if self.ended:
            quota.held = max(quota.held - self.ended, 0)
        return ours or not quota.requests

    def _settled(self, quota: Quota, left: int, tokens: int) -> None:
        """The update came to pass."""
        self.ended = self.back = 0
        self.leased, self.word = left, 0
        self.unspent = quota.unspent
        cells = quota.cells
        self.used = tuple(
            max(cells[b.cell] - (tokens if b.what == "tokens" else left), 0.0)
            for b in self.limits.buckets
        )
