"""Puts what words found into the order of meanings: one question to a backend that embeds texts.

Question and candidates go in one batch; the nearer a candidate's vector is to the question's
(cosine), the better.  The backend is asked through its ATTEMPT stages, so it has its breaker, its
places and its score as for anybody's call.

Invariants: whatever goes wrong (late, refused, no vectors) leaves the order of the words, and is
counted; vectors are read and compared one at a time, and the loop turns in between.
Its tokens and their cost are the call's (``pipeline.spending``).
Known weakness: the backend is asked once, and every time.
"""

from __future__ import annotations

import asyncio
import binascii
import math
import re
import sys
from array import array
from collections.abc import Awaitable, Callable, Sequence
from operator import mul
from typing import Any, Final, Protocol

import msgspec
import orjson
from msgspec import Struct

from tpo_mp.pipeline.spending import AsideBooks
from tpo_mp.ports import Env
from tpo_mp.store.rag_questions import Hit
from tpo_mp.types import Call, Dialect, Reply

MOST_CHARACTERS: Final = 2_000
"""Of each text; a piece of a document is about half as long."""
MOST_DIMENSIONS: Final = 8_192
MOST_BYTES: Final = 8 << 20
MOST_VECTORS: Final = 1_000
_EMBEDDING: Final = re.compile(rb'"embedding"\s*:\s*(?=[\["])')
_BRACKET: Final = ord("[")


class Embeds(Protocol):
    """A backend behind its stages."""

    def infer(self, call: Call) -> Awaitable[Reply]: ...


class _Item(Struct):
    index: int
    embedding: int
    """Number of a vector that was taken apart."""


class _Vectors(Struct):
    data: list[_Item]


_decode = msgspec.json.Decoder(_Vectors).decode
_text = msgspec.json.Decoder(str).decode
_floats = msgspec.json.Decoder(list[float]).decode


class Reranker:
    """Orders candidates by a backend's embeddings; ``target`` is set before the first call."""

    def __init__(self, backend: str, model: str, dimensions: int | None, env: Env) -> None:
        self.target: Embeds | None = None
        self._books = AsideBooks(backend, model, env)
        self._model = model
        self._dimensions = dimensions
        self._clock: Callable[[], float] = env.clock
        text = "Orders of documents that a backend was asked for, by what came of it."
        self._done, self._late, self._failed, self._unusable = (
            env.metrics.counter("tpo_rag_reranks_total", text, result=result)
            for result in ("done", "late", "failed", "unusable")
        )
        self._tokens = env.metrics.counter(
            "tpo_rag_rerank_tokens_total", "Tokens that the embeddings of reranks took."
        )

    async def order(self, call: Call, question: str, hits: list[Hit], left_s: float) -> list[Hit]:
        """The nearest first, with their similarity; as they came when that is not known in time."""
        target = self.target
        if len(hits) < 2 or target is None:
            return hits
        if left_s <= 0:
            self._late.inc()
            return hits
        try:
            async with asyncio.timeout(left_s):
                reply = await target.infer(self._call(call, question, hits, left_s))
                self._tokens.inc(self._books.enter(call, reply.usage))
                near = await similarities(reply.body or b"", len(hits))
        except TimeoutError:
            self._late.inc()
        except (ValueError, msgspec.MsgspecError):
            self._unusable.inc()
        except Exception:  # noqa: BLE001 - the answer does not depend on it
            self._failed.inc()
        else:
            self._done.inc()
            for hit, similarity in zip(hits, near, strict=True):
                hit.similarity = round(similarity, 4)
            return sorted(hits, key=lambda hit: -(hit.similarity or 0.0))
        return hits

    def _call(self, call: Call, question: str, hits: list[Hit], left_s: float) -> Call:
        texts = [question[-MOST_CHARACTERS:], *(hit.text[:MOST_CHARACTERS] for hit in hits)]
        body: dict[str, Any] = {
            "model": self._model, "input": texts, "encoding_format": "base64",
        }  # fmt: skip
        if self._dimensions is not None:
            body["dimensions"] = self._dimensions
        now = self._clock()
        asked = Call(
            id=call.id, model=self._model, body=orjson.dumps(body), stream=False, started_at=now
        )
        asked.dialect = Dialect.OPENAI_EMBEDDINGS
        asked.tenant, asked.key_id, asked.tier = call.tenant, call.key_id, call.tier
        asked.priority = call.priority
        asked.authorization = call.authorization
        asked.deadline = min(call.deadline, now + left_s)
        return asked


async def similarities(body: bytes, candidates: int) -> list[float]:
    """How near each candidate is to the question; raises ``ValueError`` for anything strange.

    ``body`` has ``candidates`` + 1 vectors, the question's first, as numbers or in base64.
    """
    if len(body) > MOST_BYTES:
        raise ValueError("too long")
    bare, vectors = _apart(body)
    items = sorted(_decode(bare).data, key=lambda item: item.index)
    if [item.index for item in items] != list(range(candidates + 1)):
        raise ValueError("not one vector for each text")
    if any(not 0 <= item.embedding < len(vectors) for item in items):
        raise ValueError("no vector")
    asked = _vector(vectors[items[0].embedding])
    length = _length(asked)
    near = []
    for item in items[1:]:
        await asyncio.sleep(0)
        vector = _vector(vectors[item.embedding])
        if len(vector) != len(asked):
            raise ValueError("vectors of several lengths")
        near.append(sum(map(mul, asked, vector)) / (length * _length(vector)))
    return near


def _apart(body: bytes) -> tuple[bytes, list[bytes]]:
    """The body with numbers in the place of its vectors, and these, unread.

    Read whole, fifty long vectors would hold the loop for some milliseconds.
    """
    parts: list[bytes] = []
    vectors: list[bytes] = []
    done, found = 0, _EMBEDDING.search(body)
    while found is not None:
        start = found.end()
        end = body.find(b"]" if body[start] == _BRACKET else b'"', start + 1) + 1
        if not end or len(vectors) > MOST_VECTORS:
            raise ValueError("a vector without an end")
        parts += (body[done:start], b"%d" % len(vectors))
        vectors.append(body[start:end])
        done, found = end, _EMBEDDING.search(body, end)
    return b"".join((*parts, body[done:])), vectors


def _vector(raw: bytes) -> Sequence[float]:
    if not raw.startswith(b'"'):
        vector: Sequence[float] = _floats(raw)
    else:
        packed = array("f")
        # Some servers escape the slashes of base64.
        said = _text(raw).encode() if b"\\" in raw else raw.strip(b'"')
        try:
            packed.frombytes(binascii.a2b_base64(said, strict_mode=True))
        except binascii.Error:
            raise ValueError("no base64") from None
        if sys.byteorder == "big":
            packed.byteswap()
        vector = packed
    if not 0 < len(vector) <= MOST_DIMENSIONS:
        raise ValueError("too few or too many numbers")
    return vector


def _length(vector: Sequence[float]) -> float:
    length = math.sqrt(sum(map(mul, vector, vector)))
    if not 0 < length < math.inf:
        raise ValueError("no direction")
    return length
