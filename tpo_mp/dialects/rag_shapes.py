"""Documents over HTTP: what is sent, and what is answered."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta, Struct

from .native import strictly

MAX_TEXT_BYTES = 1 << 20


class DocumentRequest(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A document to be looked things up in; one with the same id is replaced."""

    text: Annotated[str, Meta(min_length=1)]
    id: Annotated[str, Meta(pattern=r"^[A-Za-z0-9._-]{1,128}$(?!\n)")] | None = None
    title: Annotated[str, Meta(max_length=256)] = ""


class DocumentEntry(Struct):
    """One document; ``created_at`` is in epoch seconds."""

    id: str
    title: str
    bytes: int
    created_at: float


class DocumentKept(Struct):
    """A document that can be found from now on."""

    id: str
    title: str
    bytes: int


class DocumentShown(DocumentEntry):
    """A document with its text."""

    text: str


class DocumentPage(Struct):
    """Documents in the order in which they came; ``next`` continues with ``after=``."""

    documents: list[DocumentEntry]
    count: int
    next: str | None


class DocumentGone(Struct):
    """A document that is found no more."""

    id: str
    deleted: bool


_decode = msgspec.json.Decoder(DocumentRequest).decode


def decode_document(body: bytes) -> DocumentRequest:
    """Read one; raises ``InvalidRequest`` naming the field."""
    return strictly(_decode, body)
