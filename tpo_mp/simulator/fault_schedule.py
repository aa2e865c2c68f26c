"""When a rule strikes: which of the requests it counts, and between which moments.

A rule counts the requests that its condition and window let pass, on the whole host; ``Sequence``
speaks of these numbers, the first being 1.  ``Window`` speaks of seconds since the rules came into
force (the simulator's start, or the scenario's activation), and of the clock on the wall.

Invariants: all is arithmetic on what is passed in, so it is the same in every process.
"""

from __future__ import annotations

import re
from typing import Annotated, Final

from msgspec import Meta, Struct

DAY_S: Final = 86_400
_MOST: Final = 1_000_000_000
_NUMBER: Final = Meta(ge=0, le=_MOST)
_SECONDS: Final = Meta(ge=0, le=31_536_000)
_CLOCK: Final = re.compile(r"([01][0-9]|2[0-3]):([0-5][0-9])(?::([0-5][0-9]))?")


class Sequence(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which requests, by number; every field that is given must hold."""

    every: Annotated[
        int, _NUMBER, Meta(description="Each n-th: 10 is the 10th, the 20th and so on.")
    ] = 0
    offset: Annotated[
        int, _NUMBER, Meta(description="Moves `every`: 3 makes it the 3rd, the 13th and so on.")
    ] = 0
    first: Annotated[int, _NUMBER, Meta(description="The first so many.")] = 0
    after: Annotated[int, _NUMBER, Meta(description="All but the first so many.")] = 0
    span: Annotated[
        tuple[int, int] | None, Meta(description="From this number to that, both included.")
    ] = None
    numbers: Annotated[
        tuple[Annotated[int, Meta(ge=1)], ...], Meta(max_length=1024, description="Just these.")
    ] = ()
    fail: Annotated[int, _NUMBER, Meta(description="So many strike, then `succeed` do not.")] = 0
    succeed: Annotated[int, _NUMBER, Meta(description="So many are spared after `fail`.")] = 0

    def __post_init__(self) -> None:
        if self.span is not None and not 1 <= self.span[0] <= self.span[1]:
            raise ValueError(f"span {list(self.span)} is not from a number to a larger one")
        if self.succeed and not self.fail:
            raise ValueError("succeed without fail spares everything")
        if self.offset and not self.every:
            raise ValueError("offset moves every, which is not given")

    def strikes(self, number: int) -> bool:
        """Whether the request with this number is one of them."""
        if self.every and (number - self.offset) % self.every:
            return False
        if self.first and number > self.first:
            return False
        if number <= self.after:
            return False
        if self.span is not None and not self.span[0] <= number <= self.span[1]:
            return False
        if self.numbers and number not in self.numbers:
            return False
        return not (self.fail and (number - 1) % (self.fail + self.succeed) >= self.fail)


class Window(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Between which moments; every field that is given must hold."""

    start_s: Annotated[float, _SECONDS, Meta(description="Not before.")] = 0.0
    spread_s: Annotated[
        float, _SECONDS, Meta(description="The start is drawn from so many seconds after it.")
    ] = 0.0
    lasts_s: Annotated[float, _SECONDS, Meta(description="So long; 0: without end.")] = 0.0
    every_s: Annotated[float, _SECONDS, Meta(description="And again after so long.")] = 0.0
    since: Annotated[str, Meta(description="Daily, not before this time (UTC), as `09:30`.")] = ""
    until: Annotated[str, Meta(description="Daily, before this time (UTC).")] = ""

    def __post_init__(self) -> None:
        for text in (self.since, self.until):
            if text:
                _of_day(text)
        if self.every_s and not 0 < self.lasts_s < self.every_s:
            raise ValueError("every_s needs a lasts_s that is shorter")

    def open(self, elapsed_s: float, wall_s: float, drawn: float = 0.0) -> bool:
        """Whether it is open ``elapsed_s`` after the beginning, at ``wall_s`` of the epoch.

        ``drawn`` is the rule's number from 0 to 1 that places its start.
        """
        at = elapsed_s - self.start_s - self.spread_s * drawn
        if at < 0:
            return False
        if self.every_s:
            at %= self.every_s
        if self.lasts_s and at >= self.lasts_s:
            return False
        if not (self.since or self.until):
            return True
        now = wall_s % DAY_S
        since = _of_day(self.since) if self.since else 0
        until = _of_day(self.until) if self.until else DAY_S
        if since < until:
            return since <= now < until
        return now >= since or now < until


ALWAYS: Final = Window()
EACH: Final = Sequence()


def _of_day(text: str) -> int:
    found = _CLOCK.fullmatch(text)
    if found is None:
        raise ValueError(f"{text[:16]!r} is no time of the day such as 09:30")
    hours, minutes, seconds = found.groups()
    return int(hours) * 3600 + int(minutes) * 60 + int(seconds or 0)
