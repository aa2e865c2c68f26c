"""What is asked of the documents that answers are looked up in, as key of an ordinary question.

::

    get  rag  RagQuestion.key()                 -> JSON by ``op``: hits, a page, a document, sums
    put  rag  RagChange.key()  text             -> keeps a document in the place of one of its id
    put  rag  RagChange.key()  nothing          -> forgets it

Invariants: both sides build and read keys with this file alone; every question names its tenant,
and no answer has anything of another's.
"""

from __future__ import annotations

from typing import Final, Literal

import msgspec
from msgspec import Struct

RAG: Final = "rag"
ASK_S: Final = 5.0


class RagQuestion(Struct, frozen=True, omit_defaults=True):
    """``search`` for words, a ``page`` of the list, ``one`` document, or the ``sums``."""

    op: Literal["search", "page", "one", "sums"]
    tenant: str
    text: str = ""
    """Words to look for, or the id of a document."""
    limit: int = 4
    after: int = 0

    def key(self) -> str:
        """As a key."""
        return msgspec.json.encode(self).decode()


class RagChange(Struct, frozen=True, omit_defaults=True):
    """A document to keep or, with ``gone``, to forget; refused past the caps."""

    tenant: str
    id: str
    title: str = ""
    gone: bool = False
    most_documents: int = 0
    most_bytes: int = 0

    def key(self) -> str:
        """As a key."""
        return msgspec.json.encode(self).decode()


class Hit(Struct, omit_defaults=True):
    """A piece of a document that has the words; the higher the score the better.

    ``similarity`` is its meaning's to the question's, if a backend was asked for it.
    """

    id: str
    title: str
    piece: int
    score: float
    text: str
    similarity: float | None = None


class DocumentSums(Struct):
    """What a tenant has, and the bytes of all tenants."""

    documents: int
    bytes: int
    all_bytes: int


question: Final = msgspec.json.Decoder(RagQuestion).decode
change_of: Final = msgspec.json.Decoder(RagChange).decode
hits_of: Final = msgspec.json.Decoder(list[Hit]).decode
sums_of: Final = msgspec.json.Decoder(DocumentSums).decode
