"""What is asked of the guard over HTTP, and its answers."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct

from .native import strictly


class InspectRequest(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A prompt, or a whole request (``body``) as any of the provider APIs takes it."""

    prompt: Annotated[str, Meta(max_length=1 << 20)] | None = None
    body: dict[str, Any] | None = None


class GuardVerdict(Struct):
    """What the guard would do with it; ``pattern_matches`` are the names of its patterns."""

    action: Literal["allow", "flag", "block"]
    threat_class: Literal["instruction_override", "system_prompt_extraction", "roleplay_jailbreak",
                          "credential_fishing", "template_injection", "mixed",
                          "benign"]  # fmt: skip
    risk_score: float
    reason: str
    pattern_matches: list[str]
    critical_match: bool


class GuardStats(Struct):
    """What became of the prompts this host judged since it started."""

    enabled: bool
    mode: Literal["block", "flag", ""]
    inspected: int
    allowed: int
    flagged: int
    blocked: int
    block_rate: float
    by_class: dict[str, int]


_decode = msgspec.json.Decoder(InspectRequest).decode


def decode_inspect(body: bytes) -> InspectRequest:
    """Read one; raises ``InvalidRequest`` naming the field."""
    return strictly(_decode, body)
