"""What a step of a simulated engine takes, as a polynomial of the work in it.

::

    step = base
         + prefill_base   if any prompt token is computed
         + decode_base    if any sequence decodes
         + prefill_token · prompt tokens + prefill_pair · pairs of one and one before it
         + sequence · decoding sequences + context_token · tokens those look back on
         + kv_share · u + kv_share2 · u²    if any sequence decodes; u: share of KV blocks in use

The pairs make attention's quadratic part come out alike however a prompt is cut into chunks.
All coefficients are seconds, and the sum is never below ``least``.
"""

from __future__ import annotations

from dataclasses import dataclass

LEAST_S = 1e-5
"""No step is shorter: an engine whose steps take nothing would never let the loop go."""


@dataclass(slots=True)
class StepWork:
    """What one step computes."""

    prefill_tokens: int = 0
    prefill_pairs: float = 0.0
    sequences: int = 0
    context_tokens: int = 0
    kv_share: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class StepCosts:
    """Coefficients of one engine on one kind of hardware, in seconds."""

    base_s: float = 0.0
    prefill_base_s: float = 0.0
    decode_base_s: float = 0.0
    prefill_token_s: float = 0.0
    prefill_pair_s: float = 0.0
    sequence_s: float = 0.0
    context_token_s: float = 0.0
    kv_share_s: float = 0.0
    kv_share2_s: float = 0.0

    def step_s(self, work: StepWork) -> float:
        """How long a step with this work takes."""
        total = self.base_s
        if work.prefill_tokens:
            total += self.prefill_base_s
            total += self.prefill_token_s * work.prefill_tokens
            total += self.prefill_pair_s * work.prefill_pairs
        if work.sequences:
            total += self.decode_base_s + self.sequence_s * work.sequences
            total += self.context_token_s * work.context_tokens
            total += (self.kv_share_s + self.kv_share2_s * work.kv_share) * work.kv_share
        return max(total, LEAST_S)
