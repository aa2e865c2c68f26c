"""What workers ask control about idempotency keys, and what it keeps of each: msgpack structs.

A question is the value of an ordinary put to the table ``KEYS`` under the key's name; the answer's
value is a ``KeyAnswer``.  The name is a digest of the tenant and the client's key, so that the
store never sees the key and no tenant reaches another's.

Invariants: both sides build and read them with this file alone; a question may be asked twice.
"""

from __future__ import annotations

from typing import Final, Literal, TypeAlias

import msgspec
from msgspec import Struct

from tpo_mp.errors import WireError

KEYS: Final = "idempotency"
ASK_S: Final = 1.0
"""How long a worker waits for an answer: a claim is on disk before it is granted."""


class KeptAnswer(Struct, frozen=True, array_like=True):
    """The answer of a call, or the error it ended with.

    ``body`` is ``None`` when it was too large to keep.  Of a stream it is every byte that was sent.
    Tokens are -1 where nobody reported them.
    """

    call_id: str
    status: int
    content_type: bytes
    headers: bytes
    body: bytes | None
    stream: bool
    prompt: int = -1
    completion: int = -1
    cached: int = 0
    finish_reason: str = ""
    error: WireError | None = None
    error_body: bytes | None = None


class _Question(Struct, frozen=True, array_like=True, tag=True):
    pass


class ClaimKey(_Question, frozen=True):
    """May this call run?  ``again``: also where the worker died that ran the one before."""

    call_id: str
    print: bytes
    keep_s: float
    again: bool


class LookAtKey(_Question, frozen=True):
    """How does the key stand?"""


class EndKey(_Question, frozen=True):
    """The call that had the key has ended.

    With ``final`` the answer is kept, else it is told to those who wait, and the next who asks
    may run.
    """

    call_id: str
    print: bytes
    keep_s: float
    final: bool
    answer: KeptAnswer


KeyQuestion: TypeAlias = ClaimKey | LookAtKey | EndKey
KeyState: TypeAlias = Literal["free", "yours", "running", "done", "failed", "lost"]


class KeyAnswer(Struct, frozen=True, array_like=True):
    """How a key stands: nobody's, the asker's, another call's, or ended.

    ``lost``: the worker died that ran its call.
    """

    state: KeyState
    call_id: str = ""
    print: bytes = b""
    answer: KeptAnswer | None = None


class KeyRecord(Struct, frozen=True, array_like=True):
    """What the store keeps under a name; ``run`` is the host's life in which it was written."""

    version: int
    run: int
    state: KeyState
    call_id: str
    print: bytes
    answer: KeptAnswer | None = None


VERSION: Final = 1
encode = msgspec.msgpack.Encoder().encode
decode_question = msgspec.msgpack.Decoder(KeyQuestion).decode
decode_answer = msgspec.msgpack.Decoder(KeyAnswer).decode
decode_record = msgspec.msgpack.Decoder(KeyRecord).decode
