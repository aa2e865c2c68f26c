"""What is kept of a request whose text must not be kept: its numbers.

Invariants: no word of the request is in the result, not even the names of its fields, for only
known fields are looked at, and only numbers and switches are taken; a body that is no JSON, or
whose known fields are of other kinds, leaves nothing.
"""

from __future__ import annotations

import msgspec
from msgspec import UNSET, Struct, UnsetType


class _Parameters(Struct, omit_defaults=True):
    stream: bool | UnsetType | None = UNSET
    max_tokens: int | UnsetType | None = UNSET
    max_completion_tokens: int | UnsetType | None = UNSET
    max_output_tokens: int | UnsetType | None = UNSET
    temperature: float | UnsetType | None = UNSET
    top_p: float | UnsetType | None = UNSET
    top_k: int | UnsetType | None = UNSET
    n: int | UnsetType | None = UNSET


_decode = msgspec.json.Decoder(_Parameters).decode
_encode = msgspec.json.Encoder().encode


def parameters_of(body: bytes) -> bytes:
    """The body's numbers as a JSON object, which is empty when there are none."""
    try:
        return _encode(_decode(body))
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return b"{}"
