"""Time for simulated answers: one alarm, and the pace of a model that takes as long per token.

Deadlines are absolute (beginning plus so many intervals), so lateness never adds up.

Known weakness: the shard's timer wheel turns every 50 ms, so tokens faster than that come in
small groups, on time on average.
"""

from __future__ import annotations

from collections.abc import Callable

from tpo_mp.ports import Env


class Alarm:
    """Calls back once; see ``source.Later``."""

    __slots__ = ("_then", "deadline", "filed_at")

    def __init__(self, then: Callable[[], None]) -> None:
        self._then: Callable[[], None] | None = then
        self.deadline = float("inf")
        self.filed_at = 0.0

    @classmethod
    def set(cls, env: Env, seconds: float, then: Callable[[], None]) -> Callable[[], None]:
        """Ring after ``seconds``; what is answered stops it."""
        alarm = cls(then)
        now = env.clock()
        alarm.deadline = now + seconds
        env.timers.add(alarm, now)
        return alarm.stop

    def stop(self) -> None:
        """Never ring."""
        self.deadline = float("inf")
        self._then = None

    def expire(self) -> None:
        """Ring."""
        then, self._then = self._then, None
        if then is not None:
            then()


class FixedPace:
    """A token every ``gap_s`` seconds, the first at once; see ``source.Pace``."""

    __slots__ = ("_began_at", "_env", "_gap_s", "_release", "_released", "deadline", "filed_at")

    def __init__(self, env: Env, gap_s: float) -> None:
        self._env = env
        self._gap_s = gap_s
        self._release: Callable[[int], None] | None = None
        self._began_at = 0.0
        self._released = 0
        self.deadline = float("inf")
        self.filed_at = 0.0

    def begin(self, release: Callable[[int], None]) -> None:
        """Release the first token, and set the time of the others."""
        self._release = release
        self._began_at = self._env.clock()
        self.expire()

    def stop(self) -> None:
        """Release nothing more."""
        self._release = None
        self.deadline = float("inf")

    def expire(self) -> None:
        """Release what is due, and wait for the next."""
        if self._release is None:
            return
        now = self._env.clock()
        # An expiry is never early, but for the last digit of a float.
        due = 1 + int((now - self._began_at) / self._gap_s + 1e-6)
        if due > self._released:
            more, self._released = due - self._released, due
            self._release(more)
        if self._release is not None:
            self.deadline = self._began_at + self._released * self._gap_s
            self._env.timers.add(self, now)
