"""Log probabilities of the tokens of a simulated answer, in chat completions' shape.

Invariants: the chosen token is the likeliest of its alternatives, and all of them together are
never more than certain.
"""

from __future__ import annotations

from math import log
from random import Random
from typing import Any, Final

_OTHERS: Final = (" the", " a", " and", " of", " to", " in", ".", ",", " is", " it", " that",
                  " for", " on", " with", " as", " at", " by", " or", " an", "\n")  # fmt: skip


def rows_of(tokens: list[str], alternatives: int, random: Random) -> list[dict[str, Any]]:
    """One row per token, each with that many ``top_logprobs``."""
    return [_row(token, alternatives, random) for token in tokens]


def _row(token: str, alternatives: int, random: Random) -> dict[str, Any]:
    share = 0.55 + 0.44 * random.random()
    row = _entry(token, share)
    top = [_entry(token, share)] if alternatives else []
    left = 1 - share
    for other in _OTHERS:
        if len(top) >= alternatives:
            break
        if other != token:
            left /= 2
            top.append(_entry(other, left))
    return row | {"top_logprobs": top}


def _entry(token: str, share: float) -> dict[str, Any]:
    spelled = list(token.encode("utf-8", "surrogatepass"))
    return {"token": token, "logprob": round(log(share), 6), "bytes": spelled}
