"""The header line in which a simulated answer says what it would have cost.

Its prices are the gateway's; those of ``[simulator] prices`` come before them.
"""

from __future__ import annotations

from tpo_mp.ports import PriceList
from tpo_mp.types import Call, Usage


def cost_line(own: PriceList, others: PriceList, call: Call, usage: Usage) -> bytes:
    """The header line that tells a call's cost; empty for a model without a price."""
    cost = own.cost_usd(call.model, usage.prompt, usage.completion)
    if cost is None:
        cost = others.cost_usd(call.model, usage.prompt, usage.completion)
    return b"" if cost is None else b"x-sim-cost-usd: %.8f\r\n" % cost
