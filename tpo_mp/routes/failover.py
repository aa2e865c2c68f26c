"""The first backend of the list that can answer: primary, then secondary, then tertiary.

Every call begins with the primary.  The stage ``retry`` makes the tries and keeps the account of
them; here is only the order: the first backend that is not in ``call.tried``.  So one bound of
tries, one budget and one back-off hold for retries and for failover alike, and each try is an
attempt of its own, with the breaker of its backend; those that it keeps closed off are skipped
while another is left.  ``x-tpo-backend`` says who answered.

Invariants: a call goes to a later backend only after every earlier one failed it or was known to
fail.
Known weakness: without the stage ``retry`` a call is tried on one backend and fails there.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from msgspec import Struct

from tpo_mp.ports import Counter, Env, Feature
from tpo_mp.types import Call


class InOrder(Protocol):
    """What this route needs of a target."""

    name: str

    def blocked(self, call: Call) -> bool:
        """Whether it should be left out while another is left."""


class Config(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """No options: the order is that of the route's ``backends``."""


class FailoverRoute:
    """Picks the first backend that was not tried, in the configured order."""

    def __init__(self, config: Config, env: Env) -> None:
        self._metrics = env.metrics
        self._asked: dict[str, Counter] = {}
        self._failed: dict[str, Counter] = {}

    def pick(self, call: Call, targets: Sequence[InOrder]) -> InOrder:
        """Choose one target."""
        if call.tried:
            if call.backend:
                self._count(self._failed, "cascade_failures_total", call.backend)
            targets = [t for t in targets if t.name not in call.tried] or targets
        chosen = next((t for t in targets if not t.blocked(call)), targets[0])
        self._count(self._asked, "cascade_attempts_total", chosen.name)
        return chosen

    def _count(self, series: dict[str, Counter], name: str, backend: str) -> None:
        counter = series.get(backend)
        if counter is None:
            text = {
                "cascade_attempts_total": "Tries of a backend by a failover route.",
                "cascade_failures_total": "Failures after which a failover route went on.",
            }[name]
            counter = series[backend] = self._metrics.counter(name, text, provider=backend)
        counter.inc()


FEATURE = Feature(Config, FailoverRoute)
