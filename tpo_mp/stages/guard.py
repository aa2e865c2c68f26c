"""Looks for attacks in prompts: refuses them, or lets them through and tells of them.

All text of a request is judged (see ``pipeline.guard_scan``), whoever is said to speak it: system
prompt, messages, results and descriptions of tools.  A prompt that is refused reaches nobody; one
that is flagged is served, with a header line, a word in its record, a count and a log line.

Text up to one piece is judged in line; a longer one gives way to other calls between its pieces.

Invariants: no call passes unjudged: what cannot be read is refused; nothing of a prompt is logged
or quoted.
Known weakness: a guard of patterns knows phrases and not intentions; it is advice, no wall.  A body
is decoded as a whole before it is judged.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import ClassVar, Final

from tpo_mp.dialects.most_output import COUNTING
from tpo_mp.dialects.prompt_text import Shown, TextReader
from tpo_mp.errors import PolicyViolation
from tpo_mp.pipeline.guard_scan import GuardOptions, Scan, Scanner, Verdict
from tpo_mp.ports import Counter, Env, Feature, Proceed
from tpo_mp.types import Call, Dialect, Phase, Reply

_VECTORS: Final = frozenset({Dialect.OPENAI_EMBEDDINGS, Dialect.GEMINI_EMBEDDINGS})
_LOG_EVERY_S: Final = 1.0


class Config(GuardOptions, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How prompts are judged, and what follows."""


class Guard:
    """Judges each call before anything is spent on it."""

    phase: ClassVar[Phase] = Phase.ADMIT

    def __init__(self, config: Config, env: Env) -> None:
        self._scanner = Scanner(config)
        self._read = TextReader().read
        self._metrics = env.metrics
        self._log = env.log
        self._clock = env.clock
        self._counters: dict[tuple[str, str], Counter] = {}
        self._logged_at = -_LOG_EVERY_S
        self._unlogged = 0
        for action in ("allow", "flag", "block"):
            self._counter(action, "benign")

    def __call__(self, call: Call, proceed: Proceed, /) -> Awaitable[Reply]:
        """Judge it; raises ``PolicyViolation``."""
        if call.dialect in COUNTING:
            return proceed(call)
        shown = self._read(call.body)
        if shown.unreadable and call.dialect in _VECTORS:
            shown = Shown(shown.text, unreadable=False)  # vectors obey nobody
        scan = self._scanner.begin(shown)
        if not scan.short:
            return self._in_pieces(call, proceed, scan)
        scan.step()
        self._conclude(call, scan.verdict())
        return proceed(call)

    async def _in_pieces(self, call: Call, proceed: Proceed, scan: Scan) -> Reply:
        for _ in iter(scan.step, False):
            await asyncio.sleep(0)
        self._conclude(call, scan.verdict())
        return await proceed(call)

    def _conclude(self, call: Call, verdict: Verdict) -> None:
        """Count it; refuse or tell of it."""
        action, threat = verdict.action, verdict.threat_class.value
        self._counter(action, threat).inc()
        if action == "allow":
            return
        call.guard = f"{action}:{threat}"
        self._tell(call, verdict)
        if action == "block":
            raise PolicyViolation(
                f"the prompt was refused as a risk ({threat}, score {verdict.risk_score:.2f}): "
                f"it {verdict.reason}",
                reason="prompt_blocked",
            )
        call.limit_lines += b"x-tpo-guard: flag; class=%b; score=%.2f\r\n" % (
            threat.encode(), verdict.risk_score,
        )  # fmt: skip

    def _counter(self, action: str, threat: str) -> Counter:
        found = self._counters.get((action, threat))
        if found is None:
            found = self._counters[action, threat] = self._metrics.counter(
                "orchestrator_guard_decisions_total", "Prompts judged, by what became of them.",
                action=action, threat_class=threat,
            )  # fmt: skip
        return found

    def _tell(self, call: Call, verdict: Verdict) -> None:
        """A line about it; one a second at most, which counts those left out."""
        now = self._clock()
        if now - self._logged_at < _LOG_EVERY_S:
            self._unlogged += 1
            return
        self._log.warning(
            "a prompt looks like an attack", action=verdict.action, call=call.id,
            tenant=call.tenant, threat_class=verdict.threat_class.value,
            score=verdict.risk_score, patterns=list(verdict.pattern_matches),
            more=self._unlogged,
        )  # fmt: skip
        self._logged_at, self._unlogged = now, 0


FEATURE = Feature(Config, Guard)
