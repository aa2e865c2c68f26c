"""How long a try is waited for, by what its target usually needs: the rule, for who uses it.

The host's scores have, beside the lines of targets, two more of each where the stage ``timeout``
runs: the times of its streams to their first event, and those of its whole replies.
"""

from __future__ import annotations

from typing import Annotated, Final

from msgspec import Meta, Struct

from tpo_mp.ports import Score

LEARNT_FROM_SLICES: Final = 2


class UsualTimes(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How late is too late."""

    quantile: Annotated[
        float,
        Meta(gt=0, lt=1, description="Share of the last replies whose time to begin is taken."),
    ] = 0.99
    factor: Annotated[
        float, Meta(ge=1, le=100, description="Times that time a try is waited for.")
    ] = 2.0
    floor_s: Annotated[
        float, Meta(gt=0, le=3600, description="A try is waited for at least so long.")
    ] = 0.5
    ceiling_s: Annotated[
        float, Meta(gt=0, le=3600, description="And at most so long, once it is learnt.")
    ] = 300.0
    min_samples: Annotated[
        int, Meta(ge=1, le=1_000_000, description="Replies below which nothing is learnt.")
    ] = 100

    def limit_s(self, times: Score | None, now: float) -> float | None:
        """Seconds to wait by the last ten to twenty minutes' times; ``None``: not learnt."""
        if times is None:
            return None
        tally = times.recent(now, LEARNT_FROM_SLICES)
        usual_s = tally.quantile_s(self.quantile)
        if usual_s is None or tally.good < self.min_samples:
            return None
        return min(max(usual_s * self.factor, self.floor_s), self.ceiling_s)


def times_of(target: str, *, stream: bool) -> str:
    """Name of the line that has the times of a target's streams, or of its whole replies."""
    return f"timeout:{'stream' if stream else 'whole'}:{target}"
