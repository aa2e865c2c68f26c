"""Names the series of what is spent and saved, and counts what is asked beside an answer.

What a backend is asked for a call beside its answer counts as if it were a part of it.

Its tokens and its cost are the call's: in its record, in the budgets that it counts in and in the
dollars that the host may spend.  The metrics have them under the backend and the model asked.

Invariants: what a backend reports is counted, whatever is made of its reply.
Known weakness: a reply that nobody waited for is not counted, nor what was asked for a session's
call on another shard when its client leaves before that shard told of an answer (the metrics have
it); a model without a price costs nothing and is counted as unpriced.
"""

from __future__ import annotations

from typing import Final

from tpo_mp.ports import Env
from tpo_mp.shm.series import NANO
from tpo_mp.types import Aside, Call, Usage

PROMPT: Final = ("tpo_prompt_tokens_total", "Prompt tokens.")
COST: Final = ("orchestrator_inference_cost_usd_total", "Dollars spent.")
UNPRICED: Final = ("tpo_unpriced_calls_total", "Calls that used tokens of no known price.")
SAVED_CALLS: Final = ("tpo_saved_calls_total", "Calls answered for which no backend was asked.")
SAVED_TOKENS: Final = ("tpo_saved_tokens_total", "Tokens that no backend made again.")
SAVED_COST: Final = ("tpo_saved_cost_usd_total", "Dollars not spent.")


class AsideBooks:
    """Of one model of one backend."""

    def __init__(self, backend: str, model: str, env: Env) -> None:
        self._model = model
        self._prices = env.prices
        metrics = env.metrics
        self._prompt = metrics.counter(*PROMPT, backend=backend)
        self._cost = metrics.money(*COST, worker=backend, model=model)
        self._unpriced = metrics.counter(*UNPRICED, model=model)

    def enter(self, call: Call, usage: Usage | None) -> int:
        """Count what was reported, for a call; answers the tokens."""
        if usage is None or usage.prompt <= 0:
            return 0
        cost = self._prices.cost_usd(self._model, usage.prompt, 0, usage.cached)
        if cost is None:
            self._unpriced.inc()
        else:
            self._cost.inc(round(cost * NANO))
        self._prompt.inc(usage.prompt)
        before = call.aside or Aside(0, 0.0)
        call.aside = Aside(before.tokens + usage.prompt, before.cost_usd + (cost or 0.0))
        return usage.prompt


def paid_by(call: Call, asked: Call) -> None:
    """A call pays for what was asked in its name, also since its answer began."""
    call.backend, call.attempts = asked.backend, asked.attempts
    call.unclear = call.unclear or asked.unclear
    if asked.aside is not None:
        before, more = call.aside or Aside(0, 0.0), asked.aside
        call.aside = Aside(before.tokens + more.tokens, before.cost_usd + more.cost_usd)
