"""Reads the load off an engine's page of metrics: vLLM's, old names or new, and llama.cpp's.

How many slots a server of llama.cpp has it says on another page, ``/props``, and on ``/slots`` how
many tokens each of them holds.
Of several engines behind one page (ranks) requests are summed up, and the fullest cache counts.
Invariants: what is not understood is passed over; a page without any known name says ``None``.
"""

from __future__ import annotations

from typing import Annotated, Final, NamedTuple

import msgspec
from msgspec import Meta, Struct

RUNNING: Final = frozenset({"vllm:num_requests_running", "llamacpp:requests_processing"})
WAITING: Final = frozenset({"vllm:num_requests_waiting", "llamacpp:requests_deferred"})
KV: Final = frozenset({
    "vllm:kv_cache_usage_perc", "vllm:gpu_cache_usage_perc", "llamacpp:kv_cache_usage_ratio",
})  # fmt: skip
"""Shares of one, though vLLM calls them per cent."""
MOST: Final = 1e9
"""No engine has more requests: a larger number is nonsense, and two of them could be infinite."""
_PREFIXES: Final = ("vllm:", "llamacpp:")
_MOST_SLOTS: Final = 1 << 16


class _Props(Struct):
    total_slots: Annotated[int, Meta(ge=0, le=_MOST_SLOTS)] = 0


class _Slot(Struct):
    is_processing: bool = False
    id_task: int = -1
    n_prompt_tokens: int = -1


_decode_slots: Final = msgspec.json.Decoder(list[_Slot]).decode
_decode_props: Final = msgspec.json.Decoder(_Props).decode


class Reading(NamedTuple):
    """Requests running and waiting; the share of the KV cache in use, where it says that."""

    running: float
    waiting: float
    kv: float | None


def read_metrics(text: str) -> Reading | None:
    """Read a page in Prometheus' text format."""
    running = waiting = 0.0
    kv: float | None = None
    known = False
    for line in text.splitlines():
        if not line.startswith(_PREFIXES):
            continue
        name, value = _sample(line)
        if value is None:
            continue
        if name in RUNNING:
            running, known = running + value, True
        elif name in WAITING:
            waiting, known = waiting + value, True
        elif name in KV:
            kv = max(kv or 0.0, min(value, 1.0))
    return Reading(running, waiting, kv) if known else None


def read_props(page: bytes) -> int:
    """Read how many slots there are; 0: it does not say."""
    try:
        return _decode_props(page).total_slots
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return 0


def read_emptied(page: bytes) -> bool:
    """Read whether idle slots were emptied: some that had a task hold nothing, one at most does.

    The children of a call for several answers hold nothing either; others that did hold something.
    """
    try:
        slots = _decode_slots(page)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return False
    held = [slot.n_prompt_tokens for slot in slots if slot.id_task >= 0 and not slot.is_processing]
    return 0 in held and sum(tokens > 0 for tokens in held) <= 1


def _sample(line: str) -> tuple[str, float | None]:
    name, brace, rest = line.partition("{")
    if brace:
        rest = rest.rpartition("}")[2]
    else:
        name, _, rest = line.partition(" ")
    try:
        value = float(rest.split()[0])
    except (ValueError, IndexError):
        return name, None
    return name.strip(), value if 0 <= value <= MOST else None
