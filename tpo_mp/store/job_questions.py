"""What workers ask control about batch jobs, and what they tell it: one msgpack struct each.

They travel as the value of an ordinary put to the table ``JOBS``; the answer's value is a
``JobAnswer``.

Invariants: both sides build and read them with this file alone; a question may be asked twice.
"""

from __future__ import annotations

from typing import Final, Literal, TypeAlias

import msgspec
from msgspec import Struct

JOBS: Final = "jobs"
ASK_S: Final = 5.0
"""How long a worker waits for an answer: a large job takes a disk a moment."""


class _Question(Struct, frozen=True, array_like=True, tag=True):
    pass


class StartJob(_Question, frozen=True):
    """Keep a job and begin; ``prompts`` is msgpack of a list of strings.

    No ``max_tokens`` and a ``temperature`` below 0 leave these to the backend.
    """

    job_id: str
    tenant: str
    session: str
    model: str
    concurrency: int
    max_tokens: int
    temperature: float
    prompts: bytes


class AskProgress(_Question, frozen=True):
    """How does a job stand?  The body is JSON."""

    job_id: str


class AskLines(_Question, frozen=True):
    """Lines of prompts that have ended, after number ``after``; ``next`` continues."""

    job_id: str
    after: int
    max_bytes: int


class CancelJob(_Question, frozen=True):
    """Cancel what is left of a job; the body is its progress."""

    job_id: str


class EndPrompt(_Question, frozen=True):
    """A worker has done with a prompt; ``later``: it could not, and should get it again."""

    call_id: str
    status: Literal["completed", "failed", "cancelled"]
    record: bytes
    later: bool = False


Question: TypeAlias = StartJob | AskProgress | AskLines | CancelJob | EndPrompt


class JobAnswer(Struct, frozen=True, array_like=True):
    """What control says; ``full``: the job caps forbid another."""

    said: Literal["ok", "unknown", "full"]
    body: bytes = b""
    next: int | None = None


encode = msgspec.msgpack.Encoder().encode
decode_question = msgspec.msgpack.Decoder(Question).decode
decode_answer = msgspec.msgpack.Decoder(JobAnswer).decode
decode_prompts = msgspec.msgpack.Decoder(list[str]).decode
