"""What a row of answers says about a backend: starting, ready or down.

::

    UNKNOWN ---- good ------------------------> READY
            ---- bad -------------------------> STARTING
    STARTING --- good ------------------------> READY
             --- ``fall`` bad in a row -------> DOWN     not while it says that it loads
    READY ------ ``fall`` bad in a row -------> DOWN     STARTING if the last one says that it loads
    DOWN ------- ``rise`` good in a row ------> READY
         ------- it says that it loads -------> STARTING

Invariants: one good answer is enough for a backend that nobody has seen well yet; one bad answer
never takes a ready one away, unless ``fall`` is 1.
"""

from __future__ import annotations

from typing import Final

from tpo_mp.shm.standing import Fitness

LOADING: Final = "loading"


class Judgement:
    """One backend, as its answers came in."""

    def __init__(self, rise: int, fall: int) -> None:
        self.state = Fitness.UNKNOWN
        self.since = 0.0
        self.why = ""
        self._rise = rise
        self._fall = fall
        self._good = 0
        self._bad = 0

    def resume(self, state: Fitness, since: float, why: str) -> None:
        """Go on where the process before stopped."""
        self.state, self.since, self.why = state, since, why

    def heard(self, why: str, now: float) -> bool:
        """An answer: empty is a good one; whether the state is another one now."""
        before = self.state
        if why:
            self._good, self._bad = 0, self._bad + 1
            self.state, self.why = self._after_bad(why), why
        else:
            self._good, self._bad = self._good + 1, 0
            if before is not Fitness.DOWN or self._good >= self._rise:
                self.state, self.why = Fitness.READY, ""
        if self.state is before:
            return False
        self.since = now
        return True

    def _after_bad(self, why: str) -> Fitness:
        fell = self._bad >= self._fall
        if why == LOADING:
            return Fitness.STARTING if fell or self.state is not Fitness.READY else self.state
        if self.state is Fitness.UNKNOWN and not fell:
            return Fitness.STARTING
        return Fitness.DOWN if fell else self.state
